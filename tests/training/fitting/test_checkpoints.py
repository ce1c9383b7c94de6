"""What a checkpoint may hold: tensors, numbers and texts; anything else is refused before it can do something."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from training.fitting.checkpoints import BEST, LAST, CheckpointError, load_checkpoint
from training.fitting.fit import FitResult, fit
from training.fitting.losses import forecast_loss
from training.network.heads.forecast import ForecastSpec
from training.network.network import Network
from training.recipe import Fit


class Touches:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def train(folder: Path, *, resume: bool = False, units: int = 2, kind: str = "lstm", epochs: int = 2) -> FitResult:
    torch.manual_seed(0)
    network = Network(ForecastSpec(layers=({"type": kind, "units": units}, {"type": "dense"})))
    batch = {"history": torch.rand(4, 5, 1), "lengths": torch.full((4,), 5), "future": torch.rand(4, 1, 1)}
    settings, console = Fit(loss="mse", epochs=epochs), Console(file=io.StringIO())
    return fit(
        network, forecast_loss("mse", ()), lambda _: [batch], 1, lambda _: 0.0, settings,
        seed=0, folder=folder, resume=resume, console=console, accelerator="cpu",
    )  # fmt: skip


@pytest.mark.parametrize("place", ["state_dict", "epochs", "callbacks", "hyper_parameters"])
def test_an_object_in_a_checkpoint_is_refused_and_does_nothing(place: str, tmp_path: Path) -> None:
    train(tmp_path)
    trace = tmp_path / "trace"
    checkpoint = load_checkpoint(tmp_path / LAST)
    torch.save({**checkpoint, place: {"object": Touches(trace)}}, tmp_path / LAST)
    with pytest.raises(CheckpointError, match=r"last\.ckpt is not a checkpoint of tensors, numbers and texts alone, and is not"):
        train(tmp_path, resume=True)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Touches(trace)))  # it would have
    assert trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"last\.ckpt is not a checkpoint of tensors"),
        (b"PK\x03\x04 cut off", r"last\.ckpt is not a checkpoint of tensors"),
        (pickle.dumps({"state_dict": {}}), r"last\.ckpt is not a checkpoint of tensors"),
        (None, r"nothing to resume: there is no .*last\.ckpt"),
    ],
)
def test_what_is_no_checkpoint_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / LAST).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        train(tmp_path, resume=True)


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"state_dict": None}, {"state_dict": [torch.zeros(1)]}, {"state_dict": {"a": 1}}], ids=str
)
def test_a_file_without_weights_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / LAST)
    with pytest.raises(CheckpointError, match=r"last\.ckpt is not a checkpoint of a run: it has no weights"):
        train(tmp_path, resume=True)


@pytest.mark.parametrize("other", [{"kind": "gru"}, {"units": 3}])
def test_a_checkpoint_of_another_network_is_refused_by_the_first_weight(other: dict[str, Any], tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(CheckpointError, match=r"last\.ckpt is a checkpoint of another network: network\.layers\.0\.rnn\.\w+ is "):
        train(tmp_path, resume=True, epochs=3, **other)


def test_the_checkpoints_of_a_run_hold_nothing_else(tmp_path: Path) -> None:
    train(tmp_path)
    for name in (LAST, BEST):
        assert load_checkpoint(tmp_path / name)["state_dict"]
    assert len(train(tmp_path, resume=True, epochs=3).epochs) == 3
