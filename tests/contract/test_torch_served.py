"""What a torch module answers for a row alone, Sluice answers for that row in a mixed batch, over HTTP."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.serving import client_of
from tests.torch_models import CASES, ONE_ROW, Differenced, MiddleStep, TorchCase, floats
from training.importers.torch.calling import flatten, name_outputs, parameter_names, read_rows, structure
from training.importers.torch.publishing import publish

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated:DeprecationWarning"),
]
FAST = {
    "tutorial-lstm",
    "packed-tagger",
    "bilstm-tagger",
    "additive-attention",
    "cnn-lstm",
    "gru-cell-loop",
    "multi-input",
    "one-row-state",
}
TOLERANCE = 1e-5
LENGTHS = (5, 9, 3, 12, 7)


def longer_rows(case: TorchCase) -> list[dict[str, NDArray[Any]]]:
    """Rows of other lengths than the example's, made of its steps."""
    given = read_rows(case.rows(), [name for name in parameter_names(case.make()) if name not in ("lengths", "hidden", "h0")])
    rows = []
    for number, length in enumerate(LENGTHS):
        row = given[number % len(given)]
        # A sequence is the argument that differs between the rows.
        open_names = [name for name in row if len({other[name].shape for other in given}) > 1]
        rows.append({name: value[np.arange(length) % len(value)] if name in open_names else value for name, value in row.items()})
    return rows


def answers_of(case: TorchCase, row: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The module's answer for one row, alone and not padded."""
    model = case.make()
    is_time_first = case.options.get("batch_first") is False
    args: dict[str, Any] = {name: torch.from_numpy(value)[None] for name, value in row.items()}
    if is_time_first:
        args = {name: value.transpose(0, 1) for name, value in args.items()}
    length = len(next(iter(row.values())))
    if "lengths" in case.options:
        args["lengths"] = torch.tensor([length])
    if "h0" in case.options.get("state", {}):
        args["h0"] = torch.zeros(1, 1, 8)
    with torch.no_grad():
        result = structure(model(*args.values()))
    outputs = flatten(name_outputs(model, result), result)
    states = {"hidden_0", "hidden_1", "h_n"} if "state" in case.options else set()
    return {
        # A module for one row may give its answer without a batch axis.
        name: value.numpy()[0] if value.shape[0] == 1 else value.numpy()
        for name, value in outputs.items()
        if name not in states
    }


def check(case: TorchCase, row: dict[str, NDArray[Any]], prediction: Any) -> None:
    expected = answers_of(case, row)
    found = prediction if len(expected) > 1 else {next(iter(expected)): prediction}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(
            np.array(found[name]).reshape(values.shape), values, atol=TOLERANCE, rtol=TOLERANCE, err_msg=name
        )


async def ask_and_compare(case: TorchCase, models: Path) -> None:
    publish(case.make(), case.name, example=case.rows(), models=models, **case.options)
    rows = longer_rows(case)
    instances = [
        {name: value.tolist() for name, value in row.items()} if len(row) > 1 else next(iter(row.values())).tolist()
        for row in rows
    ]
    async with client_of(models) as client:

        async def ask(given: list[Any]) -> list[Any]:
            body = json.dumps({"model": case.name, "instances": given})
            response = await client.post("/predict", content=body)
            assert response.status_code == 200, response.text
            predictions: list[Any] = response.json()["predictions"]
            return predictions

        together = await ask(instances)
        apart = await asyncio.gather(*(ask([instance]) for instance in instances))
    for row, one, other in zip(rows, together, apart, strict=True):
        check(case, row, one)
        check(case, row, other[0])


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=() if case.name in FAST else pytest.mark.slow) for case in (*CASES, *ONE_ROW)],
)
async def test_a_module_is_served_as_it_answers_alone(case: TorchCase, tmp_path: Path) -> None:
    await ask_and_compare(case, tmp_path)


async def test_a_row_shorter_than_the_shortest_that_works_is_refused_and_the_others_are_served(tmp_path: Path) -> None:
    published = publish(Differenced(), "differences", example=floats(6, 9)(), models=tmp_path)
    assert published.verdict.min_length == 2
    assert published.folder is not None
    assert json.loads((published.folder / "manifest.json").read_text())["min_length"] == 2
    rows: list[Any] = [row.tolist() for row in floats(1, 2)()]  # type: ignore[union-attr]
    async with client_of(tmp_path) as client:
        short = await client.post("/predict", json={"model": "differences", "instances": rows})
        long = await client.post("/predict", json={"model": "differences", "instances": rows[1:]})
    assert short.status_code == 422
    assert "instance 0" in short.text
    assert "expected at least 2" in short.text
    assert long.status_code == 200


@pytest.mark.slow
async def test_rows_of_other_lengths_share_no_batch_where_the_graph_reads_the_padding(tmp_path: Path) -> None:
    published = publish(MiddleStep().eval(), "middle", example=floats(6, 9)(), models=tmp_path)
    assert published.batching == "equal"
    assert published.folder is not None
    manifest = json.loads((published.folder / "manifest.json").read_text())
    assert [tensor["shape"] for tensor in manifest["inputs"]] == [["batch", "steps", 5]]
