"""`import-torch`: a network by the name of what makes it, weights and rows from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from tests.torch_models import TutorialLSTM, floats
from training.__main__ import app
from training.importers.model import ModelImportError
from training.importers.torch.command import load_network, read_pairs
from training.importers.torch.errors import ModuleRefused

SOURCE = "tests.torch_models:TutorialLSTM"


def saved(path: Path, content: Any = None) -> Path:
    torch.manual_seed(5)
    torch.save(TutorialLSTM().state_dict() if content is None else content, path)
    return path


def rows_file(path: Path) -> Path:
    np.savez(path, *floats(6, 9)())  # type: ignore[arg-type]
    return path


def test_the_command_publishes_and_prints_the_checks(tmp_path: Path) -> None:
    weights, rows = saved(tmp_path / "best.pt"), rows_file(tmp_path / "rows.npz")
    args = ["import-torch", SOURCE, "--name", "net", "--weights", str(weights), "--example", str(rows)]
    result = CliRunner().invoke(app, [*args, "--models", str(tmp_path / "models")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "row in a batch = row alone" in result.output
    example = json.loads((tmp_path / "models" / "net" / "1" / "example.json").read_text())
    net = load_network(SOURCE, weights).eval()
    with torch.no_grad():
        expected = net(torch.tensor(example["request"]["instances"][1])[None])[0].numpy()
    np.testing.assert_allclose(example["response"]["predictions"][1], expected, atol=1e-5)


def test_the_command_words_a_refusal(tmp_path: Path) -> None:
    args = ["import-torch", SOURCE, "--name", "net", "--example", str(tmp_path / "absent.npz")]
    result = CliRunner().invoke(app, args, catch_exceptions=False)
    assert result.exit_code == 1
    assert "absent.npz" in result.output


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_weights_are_found_in_checkpoints_and_behind_wrappers(key: str | None, prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    own = TutorialLSTM().state_dict()
    content: Any = {f"{prefix}{name}": value for name, value in own.items()}
    path = saved(tmp_path / "net.pt", content if key is None else {key: content, "epoch": 3})
    loaded = load_network(SOURCE, path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in own.items())


def test_a_lightning_checkpoint_gives_the_arguments_too(tmp_path: Path) -> None:
    net = TutorialLSTM(hidden_size=4)
    content = {"state_dict": net.state_dict(), "hyper_parameters": {"hidden_size": 4, "lr": 0.1}, "epoch": 3}
    loaded = load_network(SOURCE, saved(tmp_path / "net.ckpt", content))
    assert isinstance(loaded, TutorialLSTM)
    assert loaded.hidden_size == 4


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("absent_module:Net", "cannot be imported"),
        ("tests.torch_models:Absent", "tests.torch_models has no Absent"),
        ("tests.torch_models:FEATURES", "is int, not a network"),
        ("tests.torch_models:floats", "gives function, not a torch.nn.Module"),
        ("tests.torch_models:SelectItem", "write a function without arguments"),
    ],
)
def test_a_source_that_gives_no_network_is_refused(source: str, words: str) -> None:
    with pytest.raises(ModuleRefused, match=words):
        load_network(source, None)


def test_weights_that_do_not_fit_are_named_with_their_shapes(tmp_path: Path) -> None:
    weights = TutorialLSTM(num_classes=2).state_dict()
    weights["extra"] = weights.pop("lstm.bias_hh_l1")
    with pytest.raises(ModuleRefused) as refusal:
        load_network(SOURCE, saved(tmp_path / "net.pt", weights))
    for part in ("fc.weight is [2, 8], the network has [3, 8]", "lstm.bias_hh_l1 is missing", "extra is none of the network's"):
        assert part in str(refusal.value)


def test_a_pickled_module_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(ModuleRefused, match="could run code") as refusal:
        load_network(SOURCE, saved(tmp_path / "net.pt", TutorialLSTM()))
    assert "TutorialLSTM" in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "not a file that torch saved"), (b"\x80\x02}q", "not a file that torch saved")]
)
def test_a_broken_file_of_weights_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(ModuleRefused, match=words):
        load_network(SOURCE, tmp_path / "net.pt")


def test_pairs_of_state_are_read() -> None:
    assert read_pairs(["h0=h_n", "c0=c_n"], "--state") == {"h0": "h_n", "c0": "c_n"}
    assert read_pairs([], "--state") is None
    with pytest.raises(ModuleRefused, match="ARGUMENT=OUTPUT"):
        read_pairs(["h0"], "--state")


class Tied(nn.Module):
    """Words in and out by one table."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.rnn = nn.GRU(4, 4, batch_first=True)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.words.weight

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.rnn(self.words(x))[0])


def test_weights_of_safetensors_are_read_where_a_tensor_of_two_names_is_held_once(tmp_path: Path) -> None:
    own = Tied().state_dict()
    save_file({name: value for name, value in own.items() if name != "head.weight"}, tmp_path / "net.safetensors")
    loaded = load_network(f"{__name__}:Tied", tmp_path / "net.safetensors").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in own.items())


def test_a_tensor_that_is_missing_in_safetensors_is_named(tmp_path: Path) -> None:
    own = Tied().state_dict()
    save_file({name: value for name, value in own.items() if "head" not in name}, tmp_path / "net.safetensors")
    with pytest.raises(ModuleRefused, match=r"does not fit: head\.bias is missing$"):
        load_network(f"{__name__}:Tied", tmp_path / "net.safetensors")


def test_a_damaged_file_of_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_bytes(b"no safetensors at all")
    with pytest.raises(ModelImportError, match="is no file of safetensors"):
        load_network(SOURCE, tmp_path / "net.safetensors")
