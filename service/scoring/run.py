"""One run: the records of a file through a model and into another file, in order, on several threads, within bounded memory."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from service.errors import FolderError, InferenceFailed, RequestError, ServiceError, StartError
from service.models.folder import ModelOptions
from service.models.loading import load_model
from service.models.model import Model
from service.models.scanning import ModelVersion, highest_first, scan_models
from service.scoring.parts import Parts, identify_file
from service.scoring.sources import ChunkSizes, Source, open_source
from service.tasks.tables import Columns, Record, Rejection, TableForm, TableOptions

log = logging.getLogger(__name__)

RECORDS_AT_ONCE = 512
"""Records that a thread takes: enough that rows of all lengths find others like them."""
BATCHES_PER_THREAD = 2
"""Waiting and running, so that a thread that is free need not wait for the reading."""
COMMIT_S = 30.0
"""How much work a killed run loses at most."""
INSTANCE = re.compile(r"^instance \d+: ")

Show = Callable[[float, int, int], None]
"""(share of the input, records scored, rejected)"""


@dataclass(frozen=True)
class Summary:
    """What a run did."""

    num_records: int
    num_rejected: int
    duration_s: float
    """Of this process alone, where another one had begun."""
    is_resumed: bool = False


class TooManyRejected(ServiceError):
    """More rows were rejected than the caller allows."""

    code = "too_many_rejected"


class Scored(NamedTuple):
    """What became of some records."""

    columns: Columns | None
    num_records: int
    rejections: list[Rejection]


class _Batch(NamedTuple):
    records: list[Record]
    rejections: list[Rejection]
    row: int
    """All rows before it are in this batch or in those before."""
    share: float


def find_model(name: str, folders: Sequence[Path], options: ModelOptions) -> Model:
    """The model of this name, or in this folder; of several versions the highest that is valid, or the one behind a colon.

    Runs an event loop of its own. Raises StartError where there is none.
    """
    path = Path(name)
    is_path = path.is_dir() and (path.is_absolute() or "/" in name or not any((folder / name).is_dir() for folder in folders))
    wanted, _, version = (name, "", "") if is_path else name.partition(":")
    entries, reason = scan_models([path] if is_path else list(folders))
    candidates = [entry for entry in entries if is_path or entry.name == wanted]
    if is_path and len({entry.name for entry in candidates}) > 1:
        raise StartError(f"{path} holds several models: name one of {sorted({entry.name for entry in candidates})}")
    if version:
        candidates = [entry for entry in candidates if entry.version == version]
    if not candidates:
        there = sorted({entry.name for entry in entries})
        raise StartError(f'there is no model "{name}"; there are {there}' if there else f"there is no model: {reason}")
    return _load_first(highest_first(candidates), options)


def _load_first(entries: Sequence[ModelVersion], options: ModelOptions) -> Model:
    reasons = []
    for entry in entries:
        if entry.state == "UNAVAILABLE":
            reasons.append(f"{entry.path}: {entry.reason}")
            continue
        try:
            return asyncio.run(load_model(entry.folder, options, identity=entry.key))
        except FolderError as exc:
            reasons.append(f"{entry.path}: {exc.message}")
            log.warning("the version cannot be loaded", extra={"model": entry.path, "reason": exc.message})
    raise StartError("; ".join(reasons))


def score_file(
    model: Model,
    input_path: Path,
    output_path: Path,
    options: TableOptions | None = None,
    *,
    overwrite: bool = False,
    max_rejected: int | None = None,
    show: Show = lambda *_: None,
    commit_s: float = COMMIT_S,
    clock: Callable[[], float] = time.monotonic,
    sizes: ChunkSizes | None = None,
) -> Summary:
    """Score a file; a run of the same that did not come to its end goes on where it was.

    Raises TableError where the file as a whole cannot be scored, InvalidInput and MalformedRequest for parameters, and
    TooManyRejected; what was done until then stays, for a run that goes on.
    """
    options = options or TableOptions()
    form = model.open_table(options)
    source = open_source(input_path, form, sizes)
    started = clock()
    unfinished = Parts(output_path, describe_run(model, input_path, options), overwrite=overwrite)
    unfinished.expect_apart(input_path)
    with unfinished as parts:
        committed = started
        for batch, scored in _score_all(model, form, source, parts.journal.row):
            parts.write(scored.columns, scored.num_records, scored.rejections, batch.row)
            show(batch.share, parts.num_records, parts.num_rejected)
            if max_rejected is not None and parts.num_rejected > max_rejected:
                parts.commit()
                raise TooManyRejected(f"more than {max_rejected} were rejected: {scored.rejections[-1].reason}")
            if clock() - committed >= commit_s:
                parts.commit()
                committed = clock()
        is_resumed = parts.is_resumed
        parts.finish()
        return Summary(parts.num_records, parts.num_rejected, clock() - started, is_resumed)


def describe_run(model: Model, input_path: Path, options: TableOptions) -> dict[str, Any]:
    """What a run has to have in common with the one that it goes on with."""
    return {
        "input": identify_file(input_path),
        "model": [model.name, model.version, model.graph.sha256],
        "columns": dict(options.columns),
        "parameters": dict(options.parameters),
        "keep": list(options.keep),
    }


def _score_all(model: Model, form: TableForm, source: Source, first_row: int) -> Iterator[tuple[_Batch, Scored]]:
    """Each batch with what became of it, in the order of the file; rows before `first_row` are read and left out."""
    num_threads = model.options.num_workers
    pending: deque[tuple[_Batch, Future[Scored]]] = deque()
    with ThreadPoolExecutor(num_threads, "score") as pool:
        try:
            for batch in _batches(form, source, first_row):
                pending.append((batch, pool.submit(score_records, model, form, batch.records)))
                while len(pending) > BATCHES_PER_THREAD * num_threads or (pending and pending[0][1].done()):
                    yield _collect(*pending.popleft())
            while pending:
                yield _collect(*pending.popleft())
        finally:
            for _, future in pending:
                future.cancel()


def _collect(batch: _Batch, future: Future[Scored]) -> tuple[_Batch, Scored]:
    scored = future.result()
    rejections = sorted([*batch.rejections, *scored.rejections], key=lambda rejection: rejection.row)
    return batch, scored._replace(rejections=rejections)


def _batches(form: TableForm, source: Source, first_row: int) -> Iterator[_Batch]:
    held: list[Rejection] = []
    for portion in source.portions():
        records, rejections = form.read(portion.chunk)
        found = [*held, *portion.rejections, *rejections]
        # A run that goes on reads a record from its first row: what is beyond that row is not done before the record is.
        end = form.unfinished_row
        held = [] if end is None else [each for each in found if each.row >= end]
        yield from _cut(records, [each for each in found if end is None or each.row < end], first_row, portion.progress)
    records, rejections = form.finish()
    yield from _cut(records, [*held, *rejections], first_row, 1.0)


def _cut(records: Sequence[Record], rejections: Sequence[Rejection], first_row: int, share: float) -> Iterator[_Batch]:
    """What was found from `first_row` on, in batches in the order of the file."""
    records = [record for record in records if record.row >= first_row]
    waiting = deque(sorted((each for each in rejections if each.row >= first_row), key=lambda each: each.row))
    row = first_row
    for start in range(0, max(len(records), 1), RECORDS_AT_ONCE):
        part = records[start : start + RECORDS_AT_ONCE]
        is_last = start + RECORDS_AT_ONCE >= len(records)
        row = part[-1].end if part else row
        among: list[Rejection] = []
        while waiting and (is_last or waiting[0].row < row):
            among.append(waiting.popleft())
        row = max([row, *(each.end for each in among)])
        if part or among:
            yield _Batch(part, among, row, share)


def score_records(model: Model, form: TableForm, records: Sequence[Record]) -> Scored:
    """The predictions of records as columns; those that cannot be scored are rejected, and the others scored without them."""
    rejections: list[Rejection] = []
    scored: list[Record] = []
    predictions: list[Any] = []
    todo = [list(records)] if records else []
    while todo:
        part = todo.pop()
        try:
            found = model.compute(lambda group, part=part: form.run_steps(part, group))  # type: ignore[misc]
        except (RequestError, InferenceFailed) as exc:
            place = exc.facts.get("instance")
            if type(place) is int and 0 <= place < len(part):
                rejections.append(_reject(part[place], exc))
                halves = [part[:place], part[place + 1 :]]
            elif len(part) == 1:
                rejections.append(_reject(part[0], exc))
                continue
            else:
                halves = [part[: len(part) // 2], part[len(part) // 2 :]]
            todo += [half for half in reversed(halves) if half]
        else:
            scored += part
            predictions += found
    return Scored(form.write(scored, predictions) if scored else None, len(scored), rejections)


def _reject(record: Record, exc: ServiceError) -> Rejection:
    return Rejection(record.row, record.end, INSTANCE.sub("", exc.message), record.key, exc.code)
