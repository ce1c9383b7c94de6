"""A stateful network from recipe to folder: batches come in the data's order, and the state goes from one to the next."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook

from service.models.loading import check_folder
from training.layers.recurrent import Recurrent
from training.recipe import RecipeError, parse_recipe
from training.runs.train import train as train_recipe

FORECAST = """\
task = "forecast"
name = "toy"
data = { train = [{ path = "series.csv" }] }
forecast = { context_length = 4, min_length = 4, horizon = 2 }
scaling = { kind = "none" }
evaluate = { baselines = ["last_value"] }

[[layers]]
type = "lstm"
units = 3
stateful = true

[[layers]]
type = "dense"

[fit]
loss = "mse"
epochs = 2
batch_size = 8
short_share = 0.5
"""

ROWS = """\
task = "tensor"
name = "toy"
evaluate = { baselines = ["average"] }

[data]
train = [{ path = "rows.csv" }]
validation = [{ path = "rows.csv" }]
test = [{ path = "rows.csv" }]
targets = ["c"]

[[layers]]
type = "reshape"
target_shape = [2, 1]

[[layers]]
type = "gru"
units = 3
stateful = true

[[layers]]
type = "dense"
units = 1

[fit]
loss = "mse"
epochs = 2
batch_size = 8
"""

TEXTS = """\
task = "classify"
name = "toy"
evaluate = { baselines = ["majority"] }
tokenizer = { kind = "words", vocabulary = 16, min_frequency = 1 }

[data]
train = [{ path = "texts.txt" }]
validation = [{ path = "texts.txt" }]
test = [{ path = "texts.txt" }]
drop_shared_texts = false

[[layers]]
type = "embedding"
output_dim = 2

[[layers]]
type = "simple_rnn"
units = 3
stateful = true

[[layers]]
type = "dense"
units = 2

[fit]
loss = "categorical_crossentropy"
epochs = 2
batch_size = 8
"""

NUM_ROWS = 32
LENGTHS = [1 + 5 * i % 7 for i in range(NUM_ROWS)]  # of the texts, in their file's order
# recipe, the line of its stateful layer, and what shows the rows' order: a value of each, or its length
TASKS = [
    pytest.param(FORECAST, 8, "values", list(range(NUM_ROWS)), id="forecast"),
    pytest.param(ROWS, 15, "values", list(range(NUM_ROWS)), id="rows"),
    pytest.param(TEXTS, 16, "lengths", LENGTHS, id="texts"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # 4 steps of history, 2 to forecast, 2 to validate and 2 to test leave 9 steps fewer windows than steps
    (tmp_path / "series.csv").write_text("y\n" + "".join(f"{i}\n" for i in range(NUM_ROWS + 9)))
    (tmp_path / "rows.csv").write_text("a,b,c\n" + "".join(f"{i},{i % 3},{i % 5}\n" for i in range(NUM_ROWS)))
    (tmp_path / "texts.txt").write_text("\n".join(f"{i % 2}{' word' * length}" for i, length in enumerate(LENGTHS)))
    return tmp_path


@dataclass(frozen=True, eq=False)
class Call:
    """One batch through the recurrent layer."""

    is_training: bool
    values: list[float]  # the first of each row
    lengths: list[int]
    initial: tuple[Tensor, ...]  # empty: zeros
    final: tuple[Tensor, ...]


@contextmanager
def record_calls() -> Iterator[list[Call]]:
    """All batches that recurrent layers read meanwhile."""
    calls: list[Call] = []

    def note(layer: torch.nn.Module, given: Any, answer: Any) -> None:
        if isinstance(layer, Recurrent):
            signal, _, initial = given
            values, lengths = signal.values[:, 0, 0].tolist(), signal.lengths.tolist()
            calls.append(Call(layer.training, values, lengths, initial, tuple(part.detach() for part in answer[1])))

    handle = register_module_forward_hook(note)
    try:
        yield calls
    finally:
        handle.remove()


def train(folder: Path, text: str, *changes: str) -> Path:
    path = folder / "toy.toml"
    path.write_text(text)
    recipe = parse_recipe(text, changes)
    return train_recipe(recipe, path, data=folder, models=folder / "models", runs=folder / "runs", console=Console(quiet=True))


@pytest.mark.parametrize(("text", "line", "order_of", "order"), TASKS)
def test_batches_come_in_the_datas_order_and_are_equal_in_size(
    folder: Path, text: str, line: int, order_of: str, order: list[int]
) -> None:
    with record_calls() as calls:
        train(folder, text)
    batches = [getattr(call, order_of) for call in calls if call.is_training]
    assert [len(batch) for batch in batches] == [8] * 4 * 2
    assert [row for batch in batches for row in batch] == order * 2


@pytest.mark.parametrize(("text", "line", "order_of", "order"), TASKS)
def test_state_goes_from_batch_to_batch_and_starts_at_zero_in_each_epoch_and_in_validation(
    folder: Path, text: str, line: int, order_of: str, order: list[int]
) -> None:
    with record_calls() as calls:
        train(folder, text)
    epochs = [[call for call in calls if call.is_training][at : at + 4] for at in (0, 4)]
    for epoch in epochs:
        assert not any(part.any() for part in epoch[0].initial)
        for before, after in pairwise(epoch):
            assert all(part.any() for part in after.initial)
            assert all(torch.equal(a, b) for a, b in zip(before.final, after.initial, strict=True))
    between = calls[calls.index(epochs[0][-1]) + 1 : calls.index(epochs[1][0])]
    assert between
    assert all(call.initial == () for call in between)


@pytest.mark.parametrize(("text", "line", "order_of", "order"), TASKS)
def test_the_folder_passes_the_check_and_declares_its_state(
    folder: Path, text: str, line: int, order_of: str, order: list[int]
) -> None:
    published = train(folder, text)
    assert check_folder(published) == []
    manifest = json.loads((published / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["state"]
    for pair in manifest["state"]:
        assert pair["output"] == f"{pair['input']}_next"


@pytest.mark.parametrize(("text", "line", "order_of", "order"), TASKS)
def test_rows_that_do_not_divide_are_refused_with_line_layer_and_option(
    folder: Path, text: str, line: int, order_of: str, order: list[int]
) -> None:
    index = 0 if text is FORECAST else 1
    kind = {FORECAST: "lstm", ROWS: "gru", TEXTS: "simple_rnn"}[text]
    with pytest.raises(RecipeError) as caught:
        train(folder, text, "fit.batch_size=7")
    expected = f'toy.toml, line {line}: layers[{index}] ({kind}): option "stateful": 32 rows do not divide by batch_size 7 (by 8'
    assert expected in str(caught.value)
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(("text", "line", "order_of", "order"), TASKS)
def test_with_steps_per_epoch_each_epoch_reads_the_first_batches(
    folder: Path, text: str, line: int, order_of: str, order: list[int]
) -> None:
    with record_calls() as calls:
        train(folder, text, "fit.batch_size=7", "fit.steps_per_epoch=3")
    assert [row for call in calls if call.is_training for row in getattr(call, order_of)] == order[:21] * 2
