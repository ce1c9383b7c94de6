"""One loaded model: its instances in, its predictions out, by way of its task and its batcher.

Knows nothing of folders, HTTP, other models or Prometheus.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from service.clock import Clock
from service.errors import InferenceFailed
from service.models.folder import ModelOptions, Parts
from service.runtime.tensors import Item, Tensors, collate, split
from service.scheduling.batching import Batcher, BatchObserver, SilentObserver, Work
from service.scheduling.loop_budget import Turns
from service.scheduling.planning import Limits
from service.scheduling.tuning import Tuning
from service.tasks.base import Dialogue, Prediction
from service.tasks.forecast import Forecast

log = logging.getLogger(__name__)


class ModelObserver(BatchObserver, Protocol):
    """What one model tells about itself, always on the event loop. Its example is not told: nobody asked for it."""

    def encoded(self, duration_s: float, lengths: Sequence[int]) -> None:
        """The instances of one request were checked and turned into rows of these lengths, in no order."""
        ...

    def decoded(self, duration_s: float) -> None:
        """The outputs of one request were turned into predictions."""
        ...


class SilentModelObserver(SilentObserver):
    """Hears everything, says nothing."""

    def encoded(self, duration_s: float, lengths: Sequence[int]) -> None:
        pass

    def decoded(self, duration_s: float) -> None:
        pass


class Model:
    """One version of a model, ready to be asked between `start` and `stop`."""

    def __init__(
        self,
        parts: Parts,
        options: ModelOptions,
        *,
        observer: ModelObserver | None = None,
        clock: Clock | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        self.manifest = parts.manifest
        self.name = parts.manifest.name
        self.version = parts.manifest.version
        self.task = parts.manifest.task
        self.graph = parts.graph
        self.precision_note = parts.precision_note
        self.runtime = parts.runtime
        self.signature = parts.signature
        self.options = options
        self.tuning = tuning
        self._task = parts.task
        self._turns = Turns()
        self._observer: ModelObserver = observer or SilentModelObserver()
        self.batcher: Batcher[Tensors, Tensors] = Batcher(
            self._run, options.limits, options.num_workers, clock, self._observer, name=f"{self.name}/{self.version}"
        )

    @property
    def limits(self) -> Limits:
        """How large its batches and its queue may grow."""
        return self.options.limits

    @property
    def oldest_wait_s(self) -> float | None:
        """How long the item that waits longest has waited, in seconds; None when nothing waits."""
        return self.batcher.oldest_wait_s

    async def start(self) -> None:
        """Start the threads that run the graph."""
        await self.batcher.start()

    async def stop(self) -> None:
        """Answer what waits, then end the threads."""
        await self.batcher.stop()

    async def predict(
        self,
        instances: Sequence[object],
        parameters: Mapping[str, object] | None = None,
        *,
        deadline: float | None = None,
        is_plain: bool = False,
    ) -> list[Prediction]:
        """The predictions of JSON instances, in order; `deadline` in seconds of the batcher's clock (monotonic).

        Lists of numbers in them are arrays that `wire.write` takes. `is_plain` as in `Task.dialogue`. Raises
        MalformedRequest and InvalidInput for what the caller sent, Overloaded and DeadlineExceeded, and InferenceFailed
        when the graph fails or an output is not finite. One bad instance refuses the whole request before anything runs.
        """
        parameters = parameters or {}
        dialogue = self._task.dialogue(instances, parameters, is_plain=is_plain)
        # A large request would hold up every other one while its numbers are read: it is read on a thread.
        is_heavy = self._task.is_heavy(instances, parameters)
        if not is_heavy and self._turns.is_over():
            await self._turns.next()
        started = time.perf_counter()
        said = await asyncio.to_thread(_say, dialogue, None) if is_heavy else _say(dialogue, None)
        self._observer.encoded(time.perf_counter() - started, [n for item in said.items or () for n in item.lengths])
        decode_s = 0.0
        while said.items is not None:
            outputs = await self._submit(said.items, deadline)
            started = time.perf_counter()
            try:
                said = await asyncio.to_thread(_say, dialogue, outputs) if is_heavy else _say(dialogue, outputs)
            except InferenceFailed as exc:
                # What the graph itself raises is logged with its batch; this is only seen row by row.
                log.warning("the answer is not finite", extra={"model": self.name, "version": self.version, **exc.facts})
                raise
            decode_s += time.perf_counter() - started
        self._observer.decoded(decode_s)
        return said.predictions

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What `GET /models` says of this version."""
        manifest = self.manifest
        return {
            "name": self.name,
            "version": self.version,
            "task": manifest.task,
            "description": manifest.description,
            "provider": self.runtime.provider,
            "device": self.runtime.requested,
            "precision": self.graph.precision,
            **({"precision_note": self.precision_note} if self.precision_note else {}),
            **({"fallback": self.runtime.fallback} if self.runtime.fallback else {}),
        }

    def describe(self) -> dict[str, Any]:
        """What `GET /models/{name}` says: the manifest's promises and how this server keeps them."""
        manifest, limits = self.manifest, self.options.limits
        training = manifest.training.model_dump(exclude_none=True)
        about: dict[str, Any] = {
            **self.summary,
            "licence": manifest.licence,
            "graph": self.graph.model_dump(exclude_none=True),
            "inputs": [tensor.model_dump() for tensor in manifest.inputs],
            "outputs": [tensor.model_dump() for tensor in manifest.outputs],
            "recurrent_state": [pair.model_dump() for pair in manifest.state],
            "training": training,
            "batching": {
                "max_batch_size": limits.max_batch_size,
                "max_padded_steps": limits.max_padded_steps,
                "max_queue_size": limits.max_queue_size,
                "max_queue_delay_ms": limits.max_queue_delay_s * 1000,
                "num_workers": self.options.num_workers,
                "latency_target_ms": self.options.latency_target_ms,
                "cost": asdict(limits.cost) | {"is_measured": self.tuning is not None},
                **({} if self.tuning is None else {"best": self.tuning.best.describe()}),
            },
        }
        if isinstance(self._task, Forecast):
            about["forecast"] = self._task.face.model_dump() | {"max_horizon": self._task.max_horizon}
        if manifest.classify is not None:
            about["classify"] = manifest.classify.model_dump()
        return about

    def __repr__(self) -> str:
        return f"<Model {self.name}/{self.version} {self.manifest.task} on {self.runtime.provider}: {self.batcher!r}>"

    def _run(self, items: Sequence[Tensors]) -> list[Tensors]:
        """One batch, on a worker thread: collate, run, prepare, split."""
        outputs = self.runtime.run(collate(items, self.signature))
        return split(self._task.prepare(outputs), items, self.signature)

    async def _submit(self, items: Sequence[Item], deadline: float | None) -> list[Tensors]:
        if len(items) > 1:
            works = [Work(item.tensors, item.rows, item.steps, sum(item.lengths), item.key) for item in items]
            return await self.batcher.submit_all(works, deadline=deadline)
        tensors, rows, steps, lengths, key = items[0]
        answer = await self.batcher.submit(tensors, rows=rows, steps=steps, true_steps=sum(lengths), deadline=deadline, key=key)
        return [answer]


class _Said(NamedTuple):
    """What a task said in its turn: items to run, or the predictions."""

    items: list[Item] | None
    predictions: list[Prediction]


def _say(dialogue: Dialogue, outputs: list[Tensors] | None) -> _Said:
    try:
        # A generator that has not begun takes only None.
        return _Said(next(dialogue) if outputs is None else dialogue.send(outputs), [])
    except StopIteration as stop:
        return _Said(None, stop.value)
