"""Files with the metadata of darts, made by hand: what they become, and what is refused. The real package: `tests/peers`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from tests.onnx_models import FLOAT, HIDDEN, Graph, floats, save
from training.importers.model import ModelImportError
from training.importers.onnx.darts import KEY
from training.importers.onnx.publishing import OnnxOptions, import_onnx
from training.importers.onnx.reading import read_onnx
from training.importers.torch.tasks import Forecast

COMPONENTS, HISTORY = 2, 10


def described(model: ModelProto, **changes: Any) -> ModelProto:
    """With the metadata that darts writes."""
    spec: dict[str, Any] = {
        "input_chunk_length": HISTORY,
        "output_chunk_length": 1,
        "output_chunk_shift": 0,
        "uses_past_covariates": False,
        "uses_future_covariates": False,
        "uses_static_covariates": False,
        "likelihood_parameter_names": None,
        "state_input_names": ["state_in_0", "state_in_1"],
        "state_output_names": ["state_out_0", "state_out_1"],
        "state_input_shapes": [[1, 1, HIDDEN]] * 2,
        "stepwise_state": True,
    }
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(spec | changes)
    return model


def step() -> ModelProto:
    """One step of an LSTM with its states, for one row."""
    g = Graph()
    x = g.input("past_target", FLOAT, [1, 1, COMPONENTS])
    states = [g.input(f"state_in_{index}", FLOAT, [1, 1, HIDDEN]) for index in range(2)]
    g.recurrent("LSTM", x, ["steps", "state_out_0", "state_out_1"], features=COMPONENTS, state=states)
    out = g.add("MatMul", [g.add("Reshape", ["steps", g.constant([1, 1, HIDDEN])]), g.weights(HIDDEN, COMPONENTS)])
    g.add("Reshape", [out, g.constant([1, 1, COMPONENTS, 1])], "prediction")
    g.output("prediction", FLOAT, [1, 1, COMPONENTS, 1])
    for index in range(2):
        g.output(f"state_out_{index}", FLOAT, [1, 1, HIDDEN])
    return g.model(20)


def block(numbers: int = 1) -> ModelProto:
    """Four steps at once, of a history of ten, for one row."""
    g = Graph()
    x = g.add("Transpose", [g.input("past_target", FLOAT, [1, HISTORY, COMPONENTS])], perm=[1, 0, 2])
    g.recurrent("GRU", x, ["", "h"], features=COMPONENTS)
    out = g.add("MatMul", ["h", g.weights(HIDDEN, 4 * COMPONENTS * numbers)])
    g.add("Reshape", [out, g.constant([1, 4, COMPONENTS, numbers])], "prediction")
    g.output("prediction", FLOAT, [1, 4, COMPONENTS, numbers])
    return g.model(20)


BLOCK: dict[str, Any] = {"output_chunk_length": 4, "stepwise_state": False}


def forecast(history: NDArray[Any], horizon: int) -> NDArray[Any]:
    """What darts computes with the file of a step: warm up over the history, then go on with each forecast."""
    session = onnxruntime.InferenceSession(step().SerializeToString())
    states = [np.zeros((1, 1, HIDDEN), np.float32)] * 2
    steps = [row[None, None] for row in history]
    found: list[NDArray[Any]] = []
    while len(found) < horizon:
        x = steps.pop(0)
        results: Any = session.run(None, {"past_target": x, "state_in_0": states[0], "state_in_1": states[1]})
        prediction, states = results[0], results[1:]
        if not steps:
            found.append(prediction[0, 0, :, 0])
            steps = [prediction[:, :, :, 0]]
    return np.array(found)


def imported(model: ModelProto, folder: Path, task: Forecast | None = None) -> dict[str, Any]:
    """The manifest and the example of what a file became."""
    options = OnnxOptions() if task is None else OnnxOptions(task=task)
    rows = floats(HISTORY, HISTORY, features=COMPONENTS)
    result = import_onnx(read_onnx(save(model, folder / "net.onnx")), "net", options, folder / "models", example=rows)
    assert result.folder is not None
    return {name: json.loads((result.folder / f"{name}.json").read_text()) for name in ("manifest", "example")}


@pytest.mark.parametrize("horizon", [1, 5])
def test_a_single_step_becomes_a_loop_over_the_history_and_its_own_forecasts(horizon: int, tmp_path: Path) -> None:
    found = imported(described(step()), tmp_path, Forecast(horizon, frequencies=["H"]))
    block = found["manifest"]["forecast"]
    assert (block["horizon"], block["context_length"], block["frequencies"]) == (horizon, HISTORY, ["H"])
    example = found["example"]
    for instance, prediction in zip(example["request"]["instances"], example["response"]["predictions"], strict=True):
        wanted = forecast(np.array(instance["history"], np.float32), horizon)
        np.testing.assert_allclose(prediction["forecast"], wanted, atol=1e-5)


def test_a_block_is_a_forecast_of_one_length_of_history(tmp_path: Path) -> None:
    block_of = imported(described(block(), **BLOCK), tmp_path)["manifest"]["forecast"]
    assert (block_of["horizon"], block_of["context_length"], block_of["min_length"]) == (4, HISTORY, HISTORY)


def test_quantiles_with_the_median_are_the_manifests(tmp_path: Path) -> None:
    names = ["q0.100", "q0.500", "q0.900"]
    found = imported(described(block(3), likelihood_parameter_names=names, **BLOCK), tmp_path)
    assert found["manifest"]["forecast"]["quantiles"] == [0.1, 0.5, 0.9]


@pytest.mark.parametrize(
    ("make", "changes", "task", "words"),
    [
        (step, {"uses_past_covariates": True}, None, "the darts model uses past covariates"),
        (step, {"uses_future_covariates": True}, None, "the darts model uses future covariates"),
        (step, {"uses_static_covariates": True}, None, "the darts model uses static covariates"),
        (step, {"output_chunk_shift": 3}, None, "output_chunk_shift 3"),
        (block, {"likelihood_parameter_names": ["mu", "sigma"], **BLOCK}, None, "likelihood parameters ['mu', 'sigma']"),
        (block, {"likelihood_parameter_names": ["q0.1", "q0.9"], **BLOCK}, None, "quantiles with the median"),
        (step, {"likelihood_parameter_names": ["q0.5"]}, None, "RNNModel of quantiles"),
        (step, {"state_input_shapes": [[1, 1, 4]] * 2}, None, 'the state "state_in_0" is [1, 1, 8] in the graph'),
        (step, {"state_input_names": ["a", "b"]}, None, "the spec names"),
        (step, {"input_chunk_length": 1 << 40}, None, "1 to 65536 are served"),
        (step, {"input_chunk_length": None}, None, "it is not as darts 0.48 writes it"),
        (block, BLOCK, Forecast(7), "the darts model forecasts 4 steps"),
        (lambda: without_history(), BLOCK, None, 'no input "past_target"'),
    ],
)
def test_what_is_not_served_of_darts_is_refused_by_name(
    make: Callable[[], ModelProto], changes: dict[str, Any], task: Forecast | None, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelImportError) as refusal:
        imported(described(make(), **changes), tmp_path, task)
    assert words in str(refusal.value)
    assert not (tmp_path / "models").exists()


def without_history() -> ModelProto:
    model = block()
    model.graph.input[0].name = "x"
    model.graph.node[0].input[0] = "x"
    return model
