"""ONNX files that darts wrote become forecast models by themselves: they say under `darts.onnx_spec` what they forecast from.

Darts writes a `BlockRNNModel` for one row of `input_chunk_length` steps, and an `RNNModel` as a single step with its states. The
step is put into a loop here: over the history first, and then over its own forecasts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from training.importers.model import ModelImportError
from training.importers.onnx.reading import Port, Source
from training.importers.torch.tasks import Forecast

KEY = "darts.onnx_spec"
HISTORY, PREDICTION = "past_target", "prediction"
MAX_STEPS = 65536
OPSET = 13
QUANTILE = re.compile(r"q(?:uantile)?_?(0?\.\d+|[01](?:\.\d+)?)$")


@dataclass(frozen=True)
class DartsSpec:
    """What a file of darts says of itself, as far as it is served."""

    num_history: int
    horizon: int
    quantiles: tuple[float, ...]
    states: tuple[tuple[str, str, tuple[int, ...]], ...]
    """Input, output and shape of each; only of a graph that is one step."""


def read_spec(source: Source) -> DartsSpec | None:
    """What darts wrote beside the graph; None in a file of others. Raises ModelImportError for what is not served."""
    text = source.metadata.get(KEY)
    if text is None:
        return None
    try:
        content = json.loads(text)
        for key in ("uses_past_covariates", "uses_future_covariates", "uses_static_covariates"):
            if content[key]:
                raise ModelImportError(
                    f"the darts model {key.replace('_', ' ')}: a forecast request has a history alone; fit it without, or give "
                    "them as further components of the series"
                )
        if content["output_chunk_shift"]:
            raise ModelImportError(f"the darts model has output_chunk_shift {content['output_chunk_shift']}; 0 is served")
        states: list[Any] = []
        if content["stepwise_state"]:
            shapes = [tuple(int(size) for size in shape) for shape in content["state_input_shapes"]]
            states = list(zip(content["state_input_names"], content["state_output_names"], shapes, strict=True))
        spec = DartsSpec(
            int(content["input_chunk_length"]),
            int(content["output_chunk_length"]),
            _read_quantiles(content["likelihood_parameter_names"]),
            tuple(states),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as exc:
        raise ModelImportError(f"{KEY}: it is not as darts 0.48 writes it: {type(exc).__name__} {exc}") from exc
    if not (1 <= spec.num_history <= MAX_STEPS and 1 <= spec.horizon <= MAX_STEPS):
        raise ModelImportError(f"{KEY}: {spec.num_history} steps in and {spec.horizon} out; 1 to {MAX_STEPS} are served")
    return spec


def _read_quantiles(names: Sequence[str] | None) -> tuple[float, ...]:
    if names is None:
        return ()
    found = [QUANTILE.search(name) for name in names]
    levels = tuple(float(match[1]) for match in found if match)
    if len(levels) != len(names) or 0.5 not in levels:
        raise ModelImportError(
            f"the darts model gives the likelihood parameters {list(names)}; quantiles with the median are served: fit it with "
            "QuantileRegression, or without a likelihood"
        )
    return levels


def as_forecast(source: Source, spec: DartsSpec, given: Forecast | None) -> tuple[Source, Forecast]:
    """The file as a graph from a history to a forecast, and its task; `given` are the options of a forecast that were given.

    Raises ModelImportError where graph and spec do not fit, and for a horizon that the model cannot have.
    """
    ports = {port.name: port for port in source.inputs}
    if HISTORY not in ports or PREDICTION not in {port.name for port in source.outputs}:
        raise ModelImportError(f'{KEY}: the graph has no input "{HISTORY}", or no output "{PREDICTION}"')
    horizon = given.horizon if given is not None and given.horizon else spec.horizon
    if not spec.states and horizon != spec.horizon:
        raise ModelImportError(f"--horizon: the darts model forecasts {spec.horizon} steps; a request may ask for more")
    if spec.quantiles and spec.states:
        raise ModelImportError(
            "a darts RNNModel of quantiles does not go on from its forecasts; a BlockRNNModel of quantiles is served"
        )
    task = changed(
        given or Forecast(horizon),
        horizon=horizon,
        context_length=spec.num_history,
        quantiles=spec.quantiles,
    )
    return (_looped(source, spec, horizon) if spec.states else source), task


def _looped(source: Source, spec: DartsSpec, horizon: int) -> Source:
    """One row's history in, `horizon` steps out: the file's step in two loops."""
    if source.opset < OPSET:
        raise ModelImportError(f"opset {source.opset}; darts writes {OPSET} and newer")
    known = {port.name: port for port in [*source.inputs, *source.outputs]}
    wanted = {HISTORY, PREDICTION, *(name for state in spec.states for name in state[:2])}
    if wanted != set(known):
        raise ModelImportError(f"{KEY}: the graph has the tensors {sorted(known)}, the spec names {sorted(wanted)}")
    history = known[HISTORY]
    if len(history.dims) != 3 or not isinstance(history.dims[2], int):
        raise ModelImportError(f'"{HISTORY}" is {history}, expected [1, 1, components]')
    for name, _, shape in spec.states:
        if known[name].dims != shape:
            raise ModelImportError(f'{KEY}: the state "{name}" is {known[name]} in the graph, {list(shape)} in the spec')
    return _Loops(source, spec, history, history.dims[2]).write(horizon)


class _Loops:
    """The file's step as the body of a loop over the history, and of another over its own forecasts."""

    def __init__(self, source: Source, spec: DartsSpec, history: Port, components: int) -> None:
        self.source, self.spec, self.dtype, self.components = source, spec, history.dtype, components
        self.elem_type = helper.np_dtype_to_tensor_dtype(history.dtype)
        self.model = ModelProto()
        self.model.CopyFrom(source.model)
        self.graph = self.model.graph
        self.step = list(source.model.graph.node)
        for entries in (self.graph.node, self.graph.input, self.graph.output):
            del entries[:]
        self.whole = self.constant("loop/whole", [1, 1, components])

    def write(self, horizon: int) -> Source:
        """The graph of both loops, of one row."""
        size, row = self.components, f"{HISTORY}/row"
        states = [self.constant(f"loop/{name}", np.zeros(shape), self.dtype) for name, _, shape in self.spec.states]
        axis, blank = self.constant("loop/axis", [1]), self.constant("loop/blank", np.zeros((1, 1, size)), self.dtype)
        # Of the forecasts made on the way through the history only the last is kept: it is carried as a state.
        ignored, seen = self.value("loop/ignored", [1, 1, size]), self.value("loop/seen", [1, size])
        feed = helper.make_node("Unsqueeze", ["loop/seen", axis], [HISTORY])
        body = self.body("history", [feed], [ignored, seen], [])
        *states, value = self.scan(body, [*states, blank, row], len(states) + 1, scan_input_axes=[1])
        parts = [value]
        if horizon > 1:
            turns = self.constant("loop/turns", np.zeros(horizon - 1), self.dtype)
            body = self.body("forecast", [], [self.value(HISTORY, [1, 1, size]), self.value("loop/turn", [])], ["loop/each"])
            *_, each = self.scan(body, [*states, value, turns], len(states) + 2)
            rest = self.constant("loop/rest", [1, horizon - 1, size])
            self.graph.node.append(helper.make_node("Reshape", [each, rest], ["loop/more"]))
            parts.append("loop/more")
        self.graph.node.append(helper.make_node("Concat", parts, ["forecast"], axis=1))
        self.graph.input.append(self.value(row, [1, "time", size]))
        self.graph.output.append(self.value("forecast", [1, horizon, size]))
        inputs, outputs = Port(row, self.dtype, (1, "time", size)), Port("forecast", self.dtype, (1, horizon, size))
        return changed(self.source, model=self.model, inputs=(inputs,), outputs=(outputs,))

    def body(self, name: str, before: Sequence[NodeProto], given: Sequence[Any], kept: Sequence[str]) -> GraphProto:
        """The step with its states handed on, then its forecast in the history's shape, and once more for each in `kept`."""
        inputs = [self.value(state, shape) for state, _, shape in self.spec.states]
        outputs = [self.value(f"{state}/after", shape) for _, state, shape in self.spec.states]
        nodes = [*before, *self.step]
        nodes += [helper.make_node("Identity", [state], [f"{state}/after"]) for _, state, _ in self.spec.states]
        for output in ("loop/next", *kept):
            nodes.append(helper.make_node("Reshape", [PREDICTION, self.whole], [output]))
            outputs.append(self.value(output, [1, 1, self.components]))
        return helper.make_graph(nodes, name, [*inputs, *given], outputs)

    def scan(self, body: GraphProto, inputs: Sequence[str], num_outputs: int, **attributes: Any) -> list[str]:
        """The loop's results, the last of `inputs` being what it goes over."""
        results = [f"{body.name}/{index}" for index in range(num_outputs)]
        self.graph.node.append(helper.make_node("Scan", list(inputs), results, body=body, num_scan_inputs=1, **attributes))
        return results

    def value(self, name: str, shape: Sequence[int | str]) -> Any:
        """A tensor of the history's type, declared."""
        return helper.make_tensor_value_info(name, self.elem_type, list(shape))

    def constant(self, name: str, values: Any, dtype: Any = np.int64) -> str:
        """A constant under its name."""
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name
