"""What tests use in place of slow or random things: a clock, a run that the test controls, tiny graphs, a small tokenizer."""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.runtime.base import Device
from service.runtime.tensors import Signature, Tensors, TensorSpec, collate, num_steps
from service.scheduling.observer import DequeueReason
from service.scheduling.planning import Limits, group_rows
from service.tasks.base import Task, advance
from service.wire import read, write

T = TypeVar("T")
PATIENCE_S = 20.0
"""How long a test waits for another thread before it fails."""


class ManualClock:
    """Time stands still until the test moves it."""

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now
        self._order = itertools.count()
        self._alarms: list[tuple[float, int, ManualAlarm]] = []

    def now(self) -> float:
        return self._now

    def call_at(self, when: float, callback: Callable[[], None]) -> ManualAlarm:
        alarm = ManualAlarm(callback)
        heapq.heappush(self._alarms, (when, next(self._order), alarm))
        return alarm

    def advance(self, seconds: float) -> None:
        """Move time on and set off, in order, the alarms that it passes."""
        end = self._now + seconds
        while self._alarms and self._alarms[0][0] <= end:
            when, _, alarm = heapq.heappop(self._alarms)
            self._now = max(self._now, when)
            if not alarm.is_cancelled:
                alarm.callback()
        self._now = end

    def stall(self, seconds: float) -> None:
        """Let time pass without setting off alarms: those that it passes are late."""
        self._now += seconds

    @property
    def num_alarms(self) -> int:
        return sum(not alarm.is_cancelled for _, _, alarm in self._alarms)


class ManualAlarm:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Gate(Generic[T]):
    """A `run` for a Batcher that the test opens: every batch is remembered, and waits until it is let through.

    Answers each payload with itself. A payload that is an exception is raised, whatever else is in its batch.
    """

    def __init__(self, *, is_open: bool = False) -> None:
        self.batches: list[list[T]] = []
        self._entered = threading.Semaphore(0)
        self._passes = threading.Semaphore(0)
        self._is_open = is_open

    def __call__(self, payloads: Sequence[T]) -> list[T]:
        self.batches.append(list(payloads))
        self._entered.release()
        if not self._is_open and not self._passes.acquire(timeout=PATIENCE_S):
            raise TimeoutError("the test let no batch through")
        for payload in payloads:
            if isinstance(payload, BaseException):
                raise payload
        return list(payloads)

    async def entered(self, num_batches: int = 1) -> None:
        """Wait until so many more batches have begun to run."""
        for _ in range(num_batches):
            assert await asyncio.to_thread(self._entered.acquire, timeout=PATIENCE_S), "no batch began"

    def let(self, num_batches: int = 1) -> None:
        """Let so many batches through."""
        self._passes.release(num_batches)

    def open(self) -> None:
        """Let this and every later batch through."""
        self._is_open = True
        self._passes.release(1000)


class RecordingObserver:
    """A BatchObserver that remembers every event."""

    def __init__(self) -> None:
        self.num_queued = 0
        self.queued_rows = 0
        self.num_refused = 0
        self.left: list[tuple[int, int, DequeueReason]] = []
        self.batches: list[dict[str, Any]] = []

    def enqueued(self, rows: int) -> None:
        self.num_queued += 1
        self.queued_rows += rows

    def refused(self, rows: int) -> None:
        self.num_refused += 1

    def left_queue(self, num_items: int, rows: int, reason: DequeueReason) -> None:
        self.num_queued -= num_items
        self.queued_rows -= rows
        self.left.append((num_items, rows, reason))

    def batch_executed(
        self, *, rows: int, steps: int, padded_steps: int, queue_s: Sequence[float], compute_s: float, is_ok: bool
    ) -> None:
        self.batches.append(
            {
                "rows": rows,
                "steps": steps,
                "padded_steps": padded_steps,
                "queue_s": list(queue_s),
                "compute_s": compute_s,
                "is_ok": is_ok,
            }
        )


def run_task(
    task: Task,
    run: Callable[[Tensors], Tensors],
    instances: Sequence[object],
    seen: list[Tensors] | None = None,
    limits: Limits | None = None,
    **parameters: object,
) -> list[Any]:
    """The predictions of a task as a client reads them, with `run` for the graph; what that is fed is put into `seen`."""
    steps = task.run_steps(instances, parameters, functools.partial(group_rows, limits=limits or Limits()))
    step = advance(steps, None)
    while step.items is not None:
        fed = [collate([item.tensors], task.signature) for item in step.items]
        for item, tensors in zip(step.items, fed, strict=True):
            assert (item.rows, item.steps) == (len(tensors[task.signature.first_input]), num_steps(tensors, task.signature))
            assert list(item.lengths) == tensors.get("lengths", np.full(item.rows, item.steps)).tolist()
        if seen is not None:
            seen += fed
        step = advance(steps, [task.prepare(run(tensors)) for tensors in fed])
    predictions: list[Any] = read(write(step.predictions))
    return predictions


class FakeRuntime:
    """A Runtime that answers with a function of the tensors, and remembers them."""

    def __init__(
        self, signature: Signature, answer: Callable[[Tensors], Tensors], *, provider: str = "CPUExecutionProvider"
    ) -> None:
        self.requested: Device = "cpu"
        self.provider = provider
        self.fallback: str | None = None
        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self.calls: list[Tensors] = []
        self._answer = answer

    def run(self, tensors: Tensors) -> Tensors:
        self.calls.append(tensors)
        return self._answer(tensors)

    def terminate(self) -> None:
        pass


SUM_SIGNATURE = Signature(
    inputs=(TensorSpec("history", "FP32", ("batch", "time", 1)), TensorSpec("lengths", "INT64", ("batch",))),
    outputs=(TensorSpec("mean", "FP32", ("batch", 1, 1)),),
)


def sum_graph() -> bytes:
    """`mean` = the sum of each row's first `lengths` steps: wrong at once if padding is read. See SUM_SIGNATURE."""
    nodes = [
        helper.make_node("Shape", ["history"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["time"], axis=0),
        helper.make_node("Range", ["zero", "time", "one"], ["steps"]),  # (T)
        helper.make_node("Unsqueeze", ["lengths", "axis_1"], ["ends"]),  # (B, 1)
        helper.make_node("Less", ["steps", "ends"], ["mask_2d"]),  # (B, T)
        helper.make_node("Unsqueeze", ["mask_2d", "axis_2"], ["mask"]),  # (B, T, 1)
        helper.make_node("Where", ["mask", "history", "nothing"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "axis_1"], ["mean"], keepdims=1),  # (B, 1, 1)
    ]
    constants = {
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "axis_1": np.array([1], np.int64),
        "axis_2": np.array([2], np.int64),
        "nothing": np.array(0, np.float32),
    }
    return graph(nodes, SUM_SIGNATURE, constants)


def lstm_signature(units: int = 4, features: int = 1) -> Signature:
    return Signature(
        inputs=(
            TensorSpec("history", "FP32", ("batch", "time", features)),
            TensorSpec("lengths", "INT64", ("batch",)),
            TensorSpec("h0", "FP32", ("batch", units)),
            TensorSpec("c0", "FP32", ("batch", units)),
        ),
        outputs=(
            TensorSpec("sequence", "FP32", ("batch", "time", units)),
            TensorSpec("h1", "FP32", ("batch", units)),
            TensorSpec("c1", "FP32", ("batch", units)),
        ),
        state=(("h0", "h1"), ("c0", "c1")),
    )


def recurrent_graph(kind: str = "LSTM", units: int = 4, features: int = 1, seed: int = 0) -> bytes:
    """One ONNX recurrent node (LSTM, GRU or RNN) of random weights with `lengths`; all its outputs, batch first.

    LSTM has the signature `lstm_signature(units, features)`; the others have the same without `c0` and `c1`.
    """
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    signature = recurrent_signature(kind, units, features)
    draw = np.random.default_rng(seed)
    constants = {
        "w": draw.normal(0, 0.5, (1, gates * units, features)).astype(np.float32),
        "r": draw.normal(0, 0.5, (1, gates * units, units)).astype(np.float32),
        "b": draw.normal(0, 0.5, (1, 2 * gates * units)).astype(np.float32),
        "axis_0": np.array([0], np.int64),
        "axis_1": np.array([1], np.int64),
    }
    states = [name for name, _ in signature.state]
    nodes = [
        helper.make_node("Transpose", ["history"], ["x"], perm=[1, 0, 2]),  # (T, B, F)
        helper.make_node("Cast", ["lengths"], ["lens"], to=TensorProto.INT32),
        *(helper.make_node("Unsqueeze", [name, "axis_0"], [f"{name}_d"]) for name in states),  # (D, B, H)
        helper.make_node(
            kind,
            ["x", "w", "r", "b", "lens", *(f"{name}_d" for name in states)],
            ["y", *(f"{output}_d" for _, output in signature.state)],
            hidden_size=units,
        ),
        helper.make_node("Squeeze", ["y", "axis_1"], ["y_s"]),  # (T, B, H)
        helper.make_node("Transpose", ["y_s"], ["sequence"], perm=[1, 0, 2]),  # (B, T, H)
        *(helper.make_node("Squeeze", [f"{output}_d", "axis_0"], [output]) for _, output in signature.state),
    ]
    return graph(nodes, signature, constants)


def recurrent_signature(kind: str, units: int = 4, features: int = 1) -> Signature:
    whole = lstm_signature(units, features)
    if kind == "LSTM":
        return whole
    return Signature(whole.inputs[:-1], whole.outputs[:-1], whole.state[:-1])


def graph(nodes: Sequence[Any], signature: Signature, constants: dict[str, Any]) -> bytes:
    """An ONNX model from its nodes, with the inputs and outputs of the signature."""
    types = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64, "BOOL": TensorProto.BOOL}

    def infos(specs: Sequence[TensorSpec]) -> list[Any]:
        return [helper.make_tensor_value_info(spec.name, types[spec.datatype], list(spec.shape)) for spec in specs]

    made = helper.make_graph(
        list(nodes),
        "tiny",
        infos(signature.inputs),
        infos(signature.outputs),
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
