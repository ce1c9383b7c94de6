"""`import`: which command reads a source, and the options that it takes of each."""

from __future__ import annotations

import json
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from tests.onnx_models import floats, save, tagger
from tests.torch_models import TutorialLSTM
from tests.torch_models import floats as torch_floats
from training.__main__ import app
from training.commands.imports import IMPORTS
from training.importers.sources import UnknownSource, is_module_source, kind_of


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["import", *args], catch_exceptions=False)


@pytest.mark.parametrize(
    ("source", "is_one"),
    [("net:make", True), ("a.b.c:Net.make", True), ("net.keras", False), ("C:/net.h5", False), ("net:", False), ("a b:c", False)],
)
def test_a_source_with_a_colon_is_a_module(source: str, is_one: bool) -> None:
    assert is_module_source(source) == is_one


@pytest.mark.parametrize(
    ("source", "module", "kind"),
    [
        ("net.onnx", None, "onnx"),
        ("net.keras", None, "keras"),
        ("net.h5", None, "keras"),
        ("folder", None, "keras"),
        ("package.nets:make", None, "torch"),
        ("best.ckpt", "package.nets:Net", "torch"),
        ("best.pt", "package.nets:Net", "torch"),
        ("best.safetensors", "package.nets:Net", "torch"),
    ],
)
def test_a_source_is_known_by_its_name(source: str, module: str | None, kind: str) -> None:
    assert kind_of(source, module) == kind


@pytest.mark.parametrize(
    ("source", "module", "words"),
    [
        ("best.ckpt", None, "name what makes it by --module"),
        ("net.onnx", "package.nets:Net", "--module belongs to a checkpoint"),
        ("best.ckpt", "nets.py", "expected package.module:Class"),
    ],
)
def test_a_checkpoint_needs_what_makes_its_network(source: str, module: str | None, words: str) -> None:
    with pytest.raises(UnknownSource, match=words):
        kind_of(source, module)


@pytest.mark.parametrize("files", [["configuration.pkl"], ["configuration.json", "LSTM_0.safetensors"]])
def test_a_folder_of_neuralforecast_is_known_by_its_files(files: list[str], tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert kind_of(str(tmp_path), None) == "neuralforecast"


def test_an_option_of_several_commands_has_one_type() -> None:
    hints: dict[str, Any] = {}
    for command in IMPORTS.values():
        for name, hint in get_type_hints(command).items():
            if name not in ("file", "source", "folder", "return"):
                plain = {part for part in get_args(hint) if part is not type(None)} if get_origin(hint) is UnionType else {hint}
                assert hints.setdefault(name, plain) == plain, name


def test_the_command_has_the_options_of_all_others() -> None:
    found = typer.main.get_group(app).commands

    def options(name: str) -> set[str]:
        return {option for parameter in found[name].params for option in parameter.opts if option.startswith("--")}

    assert options("import") == {"--module"}.union(*(options(f"import-{kind}") for kind in IMPORTS))


def test_an_onnx_file_is_published_and_the_checks_printed(tmp_path: Path) -> None:
    file = save(tagger(), tmp_path / "net.onnx")
    np.savez(tmp_path / "rows.npz", *floats(6, 9))
    result = run(str(file), "--name", "net", "--example", str(tmp_path / "rows.npz"), "--models", str(tmp_path / "models"))
    assert result.exit_code == 0, result.output
    for words in ("batches of rows of any length", "input  x FP32 [batch, time, 5]", "graph = file"):
        assert words in result.output
    assert (tmp_path / "models" / "net" / "1" / "manifest.json").exists()


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = run(str(save(tagger(), tmp_path / "net.onnx")), "--name", "net", "--dry-run", "--models", str(tmp_path / "models"))
    assert result.exit_code == 0, result.output
    assert "dry run: opset 17" in result.output
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--truncating", "pre"], "--truncating belongs to Keras, the source is of ONNX"),
        (["--weights", "a.pt"], "--weights belongs to torch, the source is of ONNX"),
        (["--labels", "a,b"], "--labels belongs to --task classify, the task is tensor"),
        (["--task", "forecast"], "--task forecast needs --horizon"),
        (["--task", "classify", "--labels", "a,b"], "--task classify needs --tokenizer"),
        (["--task", "rank"], "--task: expected tensor, forecast, classify, got 'rank'"),
        (["--task", "forecast", "--horizon", "3", "--quantiles", "a"], "--quantiles: expected levels as 0.1,0.5,0.9, got 'a'"),
        (["--expected", "a.npy"], "answers belong to the rows of --example"),
        (["--state", "h0"], "--state: expected ARGUMENT=OUTPUT"),
    ],
)
def test_options_that_do_not_fit_are_named(options: list[str], words: str, tmp_path: Path) -> None:
    result = run(str(save(tagger(), tmp_path / "net.onnx")), "--name", "net", "--models", str(tmp_path / "models"), *options)
    assert result.exit_code == 1
    assert words in result.output
    assert not (tmp_path / "models").exists()


def test_a_torch_network_needs_its_example(tmp_path: Path) -> None:
    result = run("tests.torch_models:TutorialLSTM", "--name", "net", "--models", str(tmp_path))
    assert result.exit_code == 1
    assert "is of torch, which needs --example" in result.output


def test_a_lightning_checkpoint_is_published_with_the_class_that_makes_its_network(tmp_path: Path) -> None:
    torch.manual_seed(5)
    net = TutorialLSTM(hidden_size=4)
    torch.save({"state_dict": net.state_dict(), "hyper_parameters": {"hidden_size": 4, "lr": 0.1}}, tmp_path / "best.ckpt")
    np.savez(tmp_path / "rows.npz", *torch_floats(6, 9)())  # type: ignore[arg-type]
    options = ["--name", "net", "--example", str(tmp_path / "rows.npz"), "--models", str(tmp_path / "models")]
    result = run(str(tmp_path / "best.ckpt"), "--module", "tests.torch_models:TutorialLSTM", *options)
    assert result.exit_code == 0, result.output
    example = json.loads((tmp_path / "models" / "net" / "1" / "example.json").read_text())
    with torch.no_grad():
        expected = net.eval()(torch.tensor(example["request"]["instances"][1])[None])[0].numpy()
    np.testing.assert_allclose(example["response"]["predictions"][1], expected, atol=1e-5)


def test_a_file_of_keras_goes_to_its_command(tmp_path: Path) -> None:
    result = run(str(tmp_path / "absent.keras"), "--name", "net", "--models", str(tmp_path))
    assert result.exit_code == 1
    assert "absent.keras" in result.output
