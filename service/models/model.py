"""One loaded model: instances in, predictions out (`predict`), or tensors in, tensors out (`infer`), through one batcher.

Knows nothing of folders, HTTP, other models or Prometheus.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import sys
import time
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from service.clock import Clock
from service.context import current_timing
from service.errors import InferenceFailed, InvalidInput, PayloadTooLarge, StateError
from service.models.folder import ModelOptions, Parts, Sampler
from service.models.overflow import expect_in_range, expect_items_in_range
from service.runtime.base import Runtime
from service.runtime.tensor_data import TensorData, datatype_of, largest_classes, read_tensor, write_bytes, write_values
from service.runtime.tensors import (
    Array,
    Item,
    Tensors,
    check,
    collate,
    make_item,
    num_steps,
    put_rows,
    row_lengths,
    split,
    take_rows,
)
from service.scheduling.batching import Batcher, Submission
from service.scheduling.loop_budget import LoopBudget
from service.scheduling.observer import BatchObserver, SilentObserver
from service.scheduling.planning import Limits, group_rows
from service.scheduling.tuning import Tuning, tune_bulk
from service.sequences.layout import StateLayout
from service.sequences.rows import SequenceRows, StatefulTensors
from service.sequences.state import GraphIdentity, SequenceState
from service.tasks.base import IS_FINITE, STATE, GroupRows, Prediction, Step, Steps, expect_finite, with_finite_rows
from service.tasks.base import advance as advance_task
from service.tasks.tables import TableForm, TableOptions

log = logging.getLogger(__name__)

BULK_BUDGETS = 10
"""How much longer the batches of a whole file may be measured than those of requests, for which a server waits at its start."""
HEAVY_TENSOR_SIZE = 200_000
"""Numbers of one request beyond which its tensors are checked and cut on a thread: some 0.2 ms."""


HEAVY_REQUEST_SIZE = 20_000
"""Values, or bytes, of a request's tensors beyond which they are read and written on a thread."""
CHARACTER_SIZE = 4
"""A character of a text, which a tokenizer reads, takes up to 1.7 µs: as much as so many values."""
MAX_VALUES = 5_000_000
"""Of all outputs of one answer: some 40 MB of JSON."""
MAX_CLASSIFIED = 200_000
"""Of the outputs whose largest values are named, which takes 2 µs for each."""
SHOWN_NAME_LENGTH = 128


class RequestedOutput(Protocol):
    """A public tensor that a request wants, and how."""

    @property
    def name(self) -> str: ...

    @property
    def is_binary(self) -> bool: ...

    @property
    def num_classes(self) -> int:
        """0: the tensor; else the so many largest values of each row, as strings."""
        ...


class AllOfIt(NamedTuple):
    """An output as it is."""

    name: str
    is_binary: bool = False
    num_classes: int = 0


class OutputTensor(NamedTuple):
    """One tensor of an answer; `data` is a flat list or array that `wire.write` takes, or bytes."""

    name: str
    datatype: str
    shape: list[int]
    data: Any
    is_binary: bool


class ModelObserver(BatchObserver, Protocol):
    """Events of one model, always reported on the event loop. The replay of its example is not reported."""

    def encoded(self, duration_s: float, lengths: Sequence[int]) -> None:
        """The instances of one request were checked and turned into rows of these lengths, in no order."""
        ...

    def decoded(self, duration_s: float) -> None:
        """The outputs of one request were turned into predictions."""
        ...


class SilentModelObserver(SilentObserver):
    """Ignores every event."""

    def encoded(self, duration_s: float, lengths: Sequence[int]) -> None:
        pass

    def decoded(self, duration_s: float) -> None:
        pass


class Model:
    """One version of a model, which takes requests between `start` and `stop`."""

    def __init__(
        self,
        parts: Parts,
        options: ModelOptions,
        limits: Limits,
        *,
        observer: ModelObserver | None = None,
        clock: Clock | None = None,
        tuning: Tuning | None = None,
        loop_budget: LoopBudget | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        """`loop_budget` is the one of the event loop that runs the model; None: the model has it to itself. `sampler` sees
        batches whose drift is measured; None: it is not.
        """
        self.manifest = parts.manifest
        self.name = parts.manifest.name
        self.version = parts.manifest.version
        self.task = parts.manifest.task
        self.definition = parts.definition
        self.graph = parts.graph
        self.sampler = sampler
        self.precision_note = parts.precision_note
        self.runtime = parts.runtime
        self.signature = parts.signature
        self.options = options
        self.limits = limits
        """How large its batches and its queue may grow."""
        self.tuning = tuning
        self.is_batched = parts.is_batched
        """Whether axis 0 of its public tensors is the batch."""
        self.public_tensors = parts.definition.public_tensors(parts.manifest, parts.signature)
        self._public_inputs = {spec.name: spec for spec in self.public_tensors.inputs}
        self._task = parts.task
        self.identity = GraphIdentity(self.name, int(self.version), self.graph.sha256)
        """Which states are its own."""
        self.why_not_streaming = parts.why_not_streaming or parts.task.why_not_streaming()
        """Why no sequence can come in pieces, in words that follow "the model cannot stream"; empty where it can."""
        self._state_inputs = {spec.name: spec for spec in self.signature.state_specs} if self.can_stream else {}
        self._layout = StateLayout(self.identity, self.signature.state_specs if self.can_stream else ())
        self.state_bytes = self._layout.num_bytes if self.can_stream else 0
        """The size of each of its states, as a block of bytes; 0 where there are none."""
        public = (*self.public_tensors.inputs, *self.public_tensors.outputs)
        self.has_own_state_field = any(spec.name == STATE for spec in public)
        """Whether a tensor of its own is called as the field of instances that carries a state: then that field is the tensor."""
        self._group = functools.partial(group_rows, limits=limits)
        self._bulk_limits = limits
        self._run_batch = functools.partial(_run_batch, parts, sampler)
        self._loop_budget = loop_budget or LoopBudget()
        self._observer: ModelObserver = observer or SilentModelObserver()
        self.on_overdue: Callable[[], None] = lambda: None
        """Called when a run took longer than it may; the run was ended, and the model answers nothing more."""
        self.batcher: Batcher[Tensors, Tensors] = Batcher(
            self._run_batch,
            limits,
            options.num_workers,
            clock,
            self._observer,
            name=f"{self.name}/{self.version}",
            max_run_s=options.max_run_s,
            on_overdue=functools.partial(_end_runs, parts.runtime, weakref.ref(self)),
        )

    @property
    def can_stream(self) -> bool:
        """Whether a sequence can come in pieces."""
        return not self.why_not_streaming

    @property
    def horizon(self) -> int | None:
        """How many steps of a series one run forecasts; None where there is no such thing."""
        return self._task.horizon

    def describe_task(self) -> dict[str, Any]:
        """What its task says of it, as `GET /models/{name}` shows it; empty where there is nothing to say."""
        return self._task.describe()

    def count_rows(self, instances: Sequence[object], parameters: Mapping[str, object]) -> int:
        """How many rows a request is for the graph, by its parameters. Raises what `predict` raises for what they hold."""
        return self._task.count_rows(instances, parameters)

    @property
    def oldest_wait_s(self) -> float | None:
        """How long the item that waits longest has waited, in seconds; None when nothing waits."""
        return self.batcher.oldest_wait_s

    def open_table(self, options: TableOptions) -> TableForm:
        """How the rows of one file are read as its instances, and its predictions written. Raises TableError."""
        return self._task.open_table(options)

    def tune_bulk(self) -> None:
        """Measure how large the batches of `compute` should be, where costs are measured at all: some seconds at most.

        Nobody waits for one of their rows, so they may be larger than those of requests.
        """
        num_steps = self.definition.longest_row(self.manifest)
        if self.options.measure_s and num_steps is not None:
            budget_s = BULK_BUDGETS * self.options.measure_s
            self._bulk_limits = tune_bulk(
                self.runtime, self.signature, self.limits, self.options.limits, num_steps=num_steps, budget_s=budget_s
            )

    def compute(self, run_steps: Callable[[GroupRows], Steps]) -> Any:
        """Take steps of its task on this thread, each run with these rows alone: for callers that bring whole batches.

        Returns their predictions as the steps do.
        May be called from several threads at once, and needs no `start`. Raises what the steps raise, and InferenceFailed.
        """
        steps = run_steps(functools.partial(group_rows, limits=self._bulk_limits))
        step = advance_task(steps, None)
        while step.items is not None:
            step = advance_task(steps, [self._run_batch([item.tensors])[0] for item in step.items])
        return step.predictions

    async def start(self) -> None:
        """Start the threads that run the graph."""
        await self.batcher.start()

    async def stop(self) -> None:
        """Answer what waits, then end the threads."""
        await self.batcher.stop()

    def predict(
        self,
        instances: Sequence[object],
        parameters: Mapping[str, object] | None = None,
        *,
        deadline: float | None = None,
        is_plain: bool = False,
        has_turn: bool = False,
    ) -> Coroutine[Any, Any, Sequence[Prediction]]:
        """The predictions of JSON instances, in order; `deadline` in seconds of the batcher's clock (monotonic).

        Lists of numbers in them are arrays that `wire.write` takes. `is_plain` as in `Task.run_steps`; with `has_turn`
        the caller has waited for a turn of the event loop itself. Raises
        MalformedRequest and InvalidInput for what the request holds, Overloaded and DeadlineExceeded, and InferenceFailed
        when the graph fails or an output is not finite. One bad instance refuses the whole request before anything runs.
        """
        parameters = parameters or {}
        steps = self._task.run_steps(instances, parameters, self._group, is_plain=is_plain)
        return self._run_steps(steps, self._task.is_heavy(instances, parameters), deadline, has_turn=has_turn)

    async def advance(
        self,
        instances: Sequence[object],
        states: Sequence[SequenceState | None],
        parameters: Mapping[str, object] | None = None,
        *,
        deadline: float | None = None,
        is_plain: bool = False,
        has_turn: bool = False,
    ) -> tuple[Sequence[Prediction], list[SequenceState]]:
        """`predict` for the next pieces of sequences, one per instance, each of which goes on from its state; None begins one.

        Returns the new states with the predictions. Nothing is kept: the same instances with the same states give the same answer
        again. Two pieces of one sequence belong into two calls. Raises StateError where the model cannot stream, and for a state
        that is not its own; and what `predict` raises.
        """
        self.expect_streaming()
        sequences = SequenceRows(states, self.signature, self._layout)
        parameters = parameters or {}
        steps = self._task.run_steps(instances, parameters, self._group, is_plain=is_plain, steps_seen=sequences.steps_seen)
        take_step = functools.partial(_advance_sequences, sequences)
        is_heavy = self._task.is_heavy(instances, parameters)
        predictions = await self._run_steps(steps, is_heavy, deadline, has_turn=has_turn, take_step=take_step)
        return predictions, sequences.states

    def with_state(self, prediction: Prediction, state: object) -> Prediction:
        """A prediction that holds the state of its sequence beside what it is, as instances do."""
        return self._task.with_state(prediction, state)

    def expect_streaming(self) -> None:
        """Raise StateError, which says why, where no sequence can come in pieces."""
        if self.why_not_streaming:
            raise StateError(
                f'model "{self.name}" cannot stream: {self.why_not_streaming}', problem="not_streaming", found=self.name
            )

    def expect_state(self, state: SequenceState) -> None:
        """Raise StateError for a state that the model cannot go on from."""
        self.expect_streaming()
        SequenceRows([state], self.signature, self._layout)

    async def _run_steps(
        self,
        steps: Steps,
        is_heavy: bool,
        deadline: float | None,
        *,
        has_turn: bool,
        take_step: Callable[[Steps, list[Tensors] | None], Step] = advance_task,
    ) -> Sequence[Prediction]:
        # A large request would hold up every other one while its numbers are read: it is read on a thread.
        if not (is_heavy or has_turn) and self._loop_budget.is_spent():
            await self._loop_budget.renewal()
            self.batcher.expect_time_left(deadline)
        timing = current_timing()
        started = time.monotonic()
        step = await asyncio.to_thread(take_step, steps, None) if is_heavy else take_step(steps, None)
        ended = time.monotonic()
        self._observer.encoded(ended - started, [n for item in step.items or () for n in item.lengths])
        if timing is not None:
            timing.add("encode", started, ended)
        decode_s = 0.0
        while step.items is not None:
            outputs = await self._submit(step.items, deadline)
            started = time.monotonic()
            try:
                step = await asyncio.to_thread(take_step, steps, outputs) if is_heavy else take_step(steps, outputs)
            except InferenceFailed as exc:
                self._log_failure(exc)
                expect_items_in_range(exc, step.items or ())
                raise
            ended = time.monotonic()
            decode_s += ended - started
            if timing is not None:
                timing.add("decode", started, ended)
        self._observer.decoded(decode_s)
        return step.predictions

    async def infer(self, tensors: Tensors, *, deadline: float | None = None, has_turn: bool = False) -> Tensors:
        """All outputs of the graph for named inputs, a row of axis 0 each, in order: `predict` without the task.

        `lengths` may be missing where all rows are of full length, and a recurrent state where it begins with zeros. Rows
        are grouped by their cost and share batches with all other requests. An output with a `time` axis is as long as the
        inputs, and means nothing beyond a row's own length. `has_turn` as in `predict`. Raises InvalidInput for tensors that are
        not the model's, and what `predict` raises.
        """
        is_heavy = sum(array.size for array in tensors.values()) > HEAVY_TENSOR_SIZE
        if not (is_heavy or has_turn) and self._loop_budget.is_spent():
            await self._loop_budget.renewal()
            self.batcher.expect_time_left(deadline)
        timing = current_timing()
        started = time.monotonic()
        groups, items = await asyncio.to_thread(self._cut, tensors) if is_heavy else self._cut(tensors)
        ended = time.monotonic()
        self._observer.encoded(ended - started, [n for item in items for n in item.lengths])
        if timing is not None:
            timing.add("encode", started, ended)
        parts = await self._submit(items, deadline)
        started = time.monotonic()
        outputs = await asyncio.to_thread(self._join, parts, groups, tensors) if is_heavy else self._join(parts, groups, tensors)
        ended = time.monotonic()
        self._observer.decoded(ended - started)
        if timing is not None:
            timing.add("decode", started, ended)
        return outputs

    async def infer_public(
        self,
        inputs: Sequence[TensorData],
        outputs: Sequence[RequestedOutput] | None = None,
        *,
        deadline: float | None = None,
        has_turn: bool = False,
    ) -> list[OutputTensor]:
        """The requested public tensors, None: all of them, for tensors as a client sent them: `infer` in the task's own terms.

        A model that can stream also takes its recurrent state, all of it or none, and returns the parts of it that are requested.
        `has_turn` as in `predict`. Raises InvalidInput for tensors that are not the model's and outputs that it does not have,
        and what `infer` raises.
        """
        return await self._infer_public(inputs, outputs, deadline, has_turn=has_turn)

    async def advance_public(
        self,
        inputs: Sequence[TensorData],
        states: Sequence[SequenceState | None],
        outputs: Sequence[RequestedOutput] | None = None,
        *,
        deadline: float | None = None,
    ) -> tuple[list[OutputTensor], list[SequenceState]]:
        """`infer_public` for the next pieces of sequences, one per row, as `advance` is `predict`: also returns the new states.

        Raises StateError as `advance` does, and InvalidInput where there are not as many rows as states.
        """
        self.expect_streaming()
        sequences = SequenceRows(states, self.signature, self._layout)
        answer = await self._infer_public(inputs, outputs, deadline, sequences)
        return answer, sequences.states

    async def _infer_public(
        self,
        inputs: Sequence[TensorData],
        outputs: Sequence[RequestedOutput] | None,
        deadline: float | None,
        sequences: SequenceRows | None = None,
        *,
        has_turn: bool = False,
    ) -> list[OutputTensor]:
        names = [spec.name for spec in self.public_tensors.outputs]
        states = self.signature.state_outputs if self.can_stream else frozenset()
        for output in outputs or ():
            if output.name not in names and output.name not in states:
                raise InvalidInput(
                    f'unknown output "{output.name[:SHOWN_NAME_LENGTH]}": the model\'s outputs are {names}',
                    where="outputs",
                    found=output.name[:SHOWN_NAME_LENGTH],
                    expected=names,
                )
        wanted = states.intersection(output.name for output in outputs or ())
        is_heavy = sum(map(reading_size, inputs)) > HEAVY_REQUEST_SIZE
        read_inputs = functools.partial(self._read_inputs, inputs, sequences, is_piece=bool(wanted))
        graph_inputs = await asyncio.to_thread(read_inputs) if is_heavy else read_inputs()
        graph_outputs = await self.infer(graph_inputs, deadline=deadline, has_turn=has_turn and not is_heavy)
        if sequences is not None:
            sequences.collect([graph_outputs])
        values = self._task.decode_tensors(graph_outputs)
        if wanted:
            values |= {name: graph_outputs[name] for name in wanted}
        if not self.is_batched:
            values = {name: array[0] for name, array in values.items()}
        requested = outputs if outputs is not None else [AllOfIt(name) for name in names]
        _expect_bounded(values, requested)
        is_slow = any(output.num_classes or values[output.name].dtype.kind == "O" for output in requested)
        if is_slow and sum(array.size for array in values.values()) > HEAVY_REQUEST_SIZE:
            return await asyncio.to_thread(self._write_outputs, values, requested)
        return self._write_outputs(values, requested)

    def _read_inputs(self, inputs: Sequence[TensorData], sequences: SequenceRows | None, *, is_piece: bool) -> Tensors:
        """The graph's inputs. Rows are pieces of sequences where `is_piece`, where there are `sequences`, or a state is given."""
        tensors: Tensors = {}
        state: Tensors = {}
        for given in inputs:
            spec = self._public_inputs.get(given.name)
            if spec is None and given.name in self._state_inputs and given.name not in state and sequences is None:
                state[given.name] = read_tensor(given, self._state_inputs[given.name])
                continue
            if spec is None or given.name in tensors:
                name, known = given.name[:SHOWN_NAME_LENGTH], list(self._public_inputs)
                why = f"the model's inputs are {known}" if spec is None else "it is there twice"
                raise InvalidInput(f'unknown input "{name}": {why}', where="inputs", found=name, expected=known)
            if self.is_batched:
                tensors[given.name] = read_tensor(given, spec)
            else:
                tensors[given.name] = read_tensor(given, replace(spec, shape=spec.shape[1:]))[np.newaxis]
        if state and state.keys() != self._state_inputs.keys():
            missing = sorted(self._state_inputs.keys() - state.keys())
            raise InvalidInput(f"the recurrent state comes whole or not at all: {missing} missing", where="inputs")
        if sequences is None:
            # Whoever sends a state counts the steps by themselves.
            steps_seen = sys.maxsize if state else 0 if is_piece else None
            return self._task.encode_tensors(tensors, steps_seen) | state
        encoded = self._task.encode_tensors(tensors, min(sequences.steps_seen))
        num_rows = check(encoded, self.signature)
        if num_rows != len(sequences.steps_seen):
            raise InvalidInput(
                f"the request has {num_rows} rows for {len(sequences.steps_seen)} sequences",
                where="inputs",
                found=num_rows,
                expected=len(sequences.steps_seen),
            )
        (item,) = sequences.attach([make_item(encoded, self.signature)])
        return item.tensors

    def _write_outputs(self, values: Tensors, requested: Sequence[RequestedOutput]) -> list[OutputTensor]:
        return [self._write_output(values[output.name], output) for output in requested]

    def _write_output(self, values: Array, output: RequestedOutput) -> OutputTensor:
        if output.num_classes:
            if values.dtype.kind not in "fiu" or values.ndim < 1:
                raise InvalidInput(f'output "{output.name}" has no numbers to classify by', where=output.name)
            values = largest_classes(values, output.num_classes, self._task.labels)
        elif values.dtype == np.float16 and not output.is_binary:
            raise InvalidInput(f'output "{output.name}" is FP16, which has no JSON form: request it as binary data')
        data = write_bytes(values) if output.is_binary else write_values(values)
        return OutputTensor(output.name, datatype_of(values), list(values.shape), data, output.is_binary)

    def __repr__(self) -> str:
        return f"<Model {self.name}/{self.version} {self.manifest.task} on {self.runtime.provider}: {self.batcher!r}>"

    def _cut(self, tensors: Tensors) -> tuple[list[list[int]], list[Item]]:
        """Check the tensors of a request; cut them into items that are worth a run each, and the rows of each."""
        check(tensors, self.signature)
        lengths = row_lengths(tensors, self.signature)
        groups = self._group(lengths)
        if len(groups) == 1 and max(lengths) == num_steps(tensors, self.signature):
            return [list(range(len(lengths)))], [make_item(_GraphInputs(tensors), self.signature)]
        parts = [take_rows(tensors, rows, max(lengths[row] for row in rows), self.signature) for rows in groups]
        return groups, [make_item(_GraphInputs(part), self.signature) for part in parts]

    def _join(self, parts: Sequence[Tensors], groups: Sequence[Sequence[int]], tensors: Tensors) -> Tensors:
        """The outputs of the items in the order of the request's rows. Raises InferenceFailed where one is not finite."""
        for part, rows in zip(parts, groups, strict=True):
            try:
                expect_finite(part, rows)
            except InferenceFailed as exc:
                self._log_failure(exc)
                for row in rows:
                    if row == exc.facts["instance"]:
                        expect_in_range(exc, tensors, row, row)
                raise
        outputs = [{name: array for name, array in part.items() if name != IS_FINITE} for part in parts]
        steps = num_steps(tensors, self.signature)
        if len(outputs) == 1 and all(
            outputs[0][name].shape[axis] == steps for name, axis in self.signature.time_outputs.items() if name in outputs[0]
        ):
            return outputs[0]
        return put_rows(outputs, groups, steps, self.signature)

    def _log_failure(self, exc: InferenceFailed) -> None:
        # What the graph itself raises is logged with its batch; this is only seen row by row.
        log.warning("the answer is not finite", extra={"model": self.name, "version": self.version, **exc.facts})

    async def _submit(self, items: Sequence[Item], deadline: float | None) -> list[Tensors]:
        if len(items) > 1:
            submissions = [Submission(item.tensors, item.rows, item.steps, sum(item.lengths), item.key) for item in items]
            return await self.batcher.submit_all(submissions, deadline=deadline)
        tensors, rows, steps, lengths, key, _ = items[0]
        output = await self.batcher.submit(tensors, rows=rows, steps=steps, true_steps=sum(lengths), deadline=deadline, key=key)
        return [output]


def _expect_bounded(values: Tensors, requested: Sequence[RequestedOutput]) -> None:
    """Raise PayloadTooLarge for more values than are written: a plain graph may make as many as a number in its input says."""
    for limit, what, found in (
        (MAX_VALUES, "values", sum(values[output.name].size for output in requested)),
        (MAX_CLASSIFIED, "values to classify", sum(values[output.name].size for output in requested if output.num_classes)),
    ):
        if found > limit:
            raise PayloadTooLarge(f"the answer would hold {found} {what}, at most {limit} are given", found=found, limit=limit)


def reading_size(tensor: TensorData) -> int:
    """About how many values or bytes of a tensor are read; a lie of its shape is refused before they are."""
    data = tensor.data
    if not isinstance(data, list):
        # Numbers that come as bytes are not read one by one: a thread costs more than what it would take off the loop.
        return len(data) * CHARACTER_SIZE if tensor.datatype == "BYTES" else 0
    size = max(len(data), math.prod(tensor.shape))
    if tensor.datatype == "BYTES":
        size += CHARACTER_SIZE * sum(len(value) for value in data if type(value) is str)
    return size


class _GraphInputs(dict[str, Array]):
    """Tensors whose outputs are wanted as the graph gives them, in a batch with others that `Task.prepare` is for."""


_MARKED = frozenset((_GraphInputs, StatefulTensors))


def _advance_sequences(sequences: SequenceRows, steps: Steps, outputs: list[Tensors] | None) -> Step:
    """`advance_task` where instances are pieces of sequences."""
    if outputs is not None:
        sequences.collect(outputs)
    step = advance_task(steps, outputs)
    return step if step.items is None else Step(sequences.attach(step.items), [])


def _end_runs(runtime: Runtime, model: weakref.ref[Model]) -> None:
    """End the runs of a graph, and call `on_overdue` where the model is still held."""
    runtime.terminate()
    held = model()
    if held is not None:
        held.on_overdue()


def _run_batch(model: Parts, sampler: Sampler | None, items: Sequence[Tensors]) -> list[Tensors]:
    """One batch, on a worker thread: collate, run, prepare, split.

    Of the model it gets the parts alone: who holds the `Model` itself is a request (`Repository` waits for them).
    """
    signature = model.signature
    inputs = collate(items, signature)
    outputs = model.runtime.run(inputs)
    if sampler is not None:
        sampler.offer(inputs, outputs)
    if _MARKED.isdisjoint(map(type, items)):
        return split(model.task.prepare(outputs), items, signature)
    kinds = set(map(type, items))
    if kinds == {_GraphInputs}:
        return split(with_finite_rows(outputs, list(outputs.values())), items, signature)
    states = {name: outputs[name] for name in signature.state_outputs}
    prepared = split({**states, **model.task.prepare(outputs)}, items, signature)
    if _GraphInputs not in kinds:
        return prepared
    parts = split(with_finite_rows(outputs, list(outputs.values())), items, signature)
    return [part if type(item) is _GraphInputs else own for item, part, own in zip(items, parts, prepared, strict=True)]
