"""Whether a graph answers as the module does: each row as the module alone answers it, in whatever batch it is run.

Measures and says; publishes nothing. Probes are rows of the example, random rows in the range of its numbers at other lengths,
and rows between 0 and 1; at each of them the tolerance follows the module's own rounding.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from training.export.rounding import NUM_MOVED, allow, double_by_default, in_double, move_weights
from training.importers.torch.artifact import Artifact, GraphRun, size
from training.importers.torch.calling import Arrays, Names, Subject, flatten

TOLERANCE = 1e-4
NUM_PROBES = 6
NUM_PIECES = 3
EXAMPLE_ROWS, UNIT_ROWS = "the example's rows", "rows between 0 and 1"
OVERFLOWS = "the module overflows by itself"
PADDINGS = (1e4, -1e4)
"""What stands behind a row's end, where nothing may read it: more than a least number reads, and less than a largest."""

Row = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Check:
    """One equality: its largest error, relative to the size of the row's answer, and where it was."""

    name: str
    error: float
    case: str
    allowed: float

    @property
    def is_met(self) -> bool:
        return self.error <= self.allowed

    def __str__(self) -> str:
        return f"{self.name}: error {self.error:.3g} (allowed {self.allowed:.2g}) at {self.case}"


@dataclass(frozen=True)
class Verdict:
    """All checks of one candidate, the shortest row that works, and what a row costs."""

    checks: tuple[Check, ...]
    min_length: int
    rounding: float
    ms_per_row: float
    ms_per_row_torch: float
    rows: tuple[str, ...] = ()
    """Which rows the checks were measured at."""
    notes: tuple[str, ...] = ()
    """Which were left out, and why."""

    @property
    def overflow(self) -> str:
        """At which of the caller's rows the module itself overflows, if at any."""
        return next((note for note in self.notes if OVERFLOWS in note and EXAMPLE_ROWS in note), "")

    @property
    def broken(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.is_met)


Expected = Sequence[Mapping[str, NDArray[Any]]]


class Reference:
    """What the module answers for one row alone, by output name, without a batch axis."""

    def __init__(self, subject: Subject, names: Names, shapes: Mapping[str, tuple[int | str, ...]]) -> None:
        self.subject = subject
        self.names = names
        self.shapes = shapes

    def answer(self, row: Row) -> Arrays:
        """Raises what the module raises."""
        arrays = {name: value[None] for name, value in row.items()}
        for state in self.subject.states:
            arrays.setdefault(state.input, np.zeros((1, *state.axes), np.float32))
        result = self.subject.call(arrays, [self.subject.num_steps(row)])
        return {name: self.shape(name, value.numpy()) for name, value in flatten(self.names, result).items()}

    def shape(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """Without the batch axis of one row, wherever the module has it."""
        wanted = len(self.shapes[name]) - 1
        if values.ndim != wanted + 1:
            return values  # a view made rows and steps into one axis: it is the row's already
        place = self.subject.batch_places.get(name, 0)
        first: NDArray[Any] = values.take(0, axis=place)
        return first


def verify(
    artifact: Artifact,
    subject: Subject,
    names: Names,
    *,
    tolerance: float = TOLERANCE,
    expected: Expected | None = None,
    seed: int = 0,
    source: str = "module",
) -> Verdict:
    """Measure all checks of a candidate; `source` is what the subject's module stands for.

    Raises what onnxruntime raises where the graph does not load.
    """
    return _Measurement(artifact, subject, names, tolerance, seed, source).measure(expected)


class _Measurement:
    def __init__(self, artifact: Artifact, subject: Subject, names: Names, tolerance: float, seed: int, source: str) -> None:
        self.artifact, self.subject, self.source = artifact, subject, source
        self.graph = GraphRun(artifact, subject)
        self.reference = Reference(subject, names, {entry.name: entry.shape for entry in artifact.outputs})
        self.random = np.random.default_rng(seed)
        self.tolerance = tolerance
        self.found: dict[str, Check] = {}
        self.moved: list[Reference] = []
        self.rounding = 0.0

    def measure(self, expected: Expected | None) -> Verdict:
        min_length = self._find_min_length()
        tried, notes = [], []
        for name, rows in self._probes(min_length).items():
            answers = [self.reference.answer(row) for row in rows]
            fault = self._measure_probe(name, rows, answers)
            if fault:
                notes.append(fault)
            if not fault or name == EXAMPLE_ROWS:
                tried.append(name)
        if self.subject.states:
            self._check_pieces(min_length)
        if expected is not None:
            for number, (row, owed) in enumerate(zip(self.subject.rows, expected, strict=True)):
                (found,) = self._answer("expected answers", [row])
                self._compare("expected answers", found, owed, f"example row {number}", self.tolerance)
        checks = tuple(self.found.values())
        # A graph that breaks a check may not run at all.
        times = self._measure_time() if all(check.is_met for check in checks) else (math.nan, math.nan)
        return Verdict(checks, min_length, self.rounding, *times, tuple(tried), tuple(notes))

    def _measure_probe(self, name: str, rows: Sequence[Row], answers: Sequence[Arrays]) -> str:
        """Measure the checks at these rows; says why they say nothing, if so. Rows of the example count in any case."""
        known, self.found = self.found, {}
        rounding = self.rounding
        overflows = any(np.isinf(values).any() for answer in answers for values in answer.values() if values.dtype.kind == "f")
        fault = f"{OVERFLOWS} at {name}: its own answer is infinite" if overflows else ""
        self.rounding = max(rounding, self._measure_rounding(rows, answers))
        self._check_rows(rows, answers, [self.tolerance] * len(rows))
        if not fault and any(not check.is_met and math.isfinite(check.error) for check in self.found.values()):
            self.found = {}
            allowed = self._allow(rows)
            self._check_rows(rows, answers, allowed)
            undetermined = sum(math.isinf(bound) for bound in allowed)
            if 2 * undetermined > len(rows):
                share = f"{undetermined} of {len(rows)} answers are decided by it"
                fault = f"the module amplifies its own rounding at {name}: {share}"
        if fault and name != EXAMPLE_ROWS:
            self.found, self.rounding = known, rounding
        else:
            self.found = {**known, **{key: max(known.get(key, own), own, key=_excess) for key, own in self.found.items()}}
        return fault

    def _allow(self, rows: Sequence[Row]) -> list[float]:
        """The error that each row may have: how far its answer moves when the weights move by a few roundings."""
        try:
            models = [in_double(self.subject.model), *(move_weights(self.subject.model, n) for n in range(NUM_MOVED))]
            with double_by_default():
                answers = [[self._double(model).answer(row) for row in rows] for model in models]
            exact, moved = answers[0], answers[1:]
        except Exception:  # modules may forbid copies, and have float32 written into them
            return [self.tolerance] * len(rows)
        reach = [
            max(_apart(other[number][output], values) for other in moved for output, values in wanted.items())
            for number, wanted in enumerate(exact)
        ]
        return allow(self.tolerance, np.array(reach)).tolist()  # type: ignore[no-any-return]

    def _double(self, model: nn.Module) -> Reference:
        subject = copy.copy(self.subject)
        subject.model = model
        subject.is_double = True
        return Reference(subject, self.reference.names, self.reference.shapes)

    def _probes(self, min_length: int) -> dict[str, list[Row]]:
        probes = {EXAMPLE_ROWS: [*self.subject.rows, *self._draw(min_length)]}
        if any(spec.dtype.kind == "f" for spec in self.subject.inputs):
            lengths = [min_length, min_length + 5] if self.subject.is_open else [None, None]
            rows: list[Row] = [self._row(length, (0.0, 1.0)) for length in lengths]
            # No row of the caller's: a module may not take such numbers at all.
            if all(np.isfinite(values).all() for row in rows for values in self._try(row).values() if values.dtype.kind == "f"):
                probes[UNIT_ROWS] = rows
        return probes

    def _try(self, row: Row) -> Arrays:
        try:
            return self.reference.answer(row)
        except Exception:  # a module raises what it likes
            return {"": np.array(np.nan, np.float32)}

    # ------------------------------------------------------------------------------------------------------- checks

    def _check_rows(self, rows: Sequence[Row], answers: Sequence[Arrays], allowed: Sequence[float]) -> None:
        """Every row alone, in batches, and padded."""
        for row, wanted, bound in zip(rows, answers, allowed, strict=True):
            (found,) = self._answer(f"graph = {self.source}", [row])
            self._compare(f"graph = {self.source}", found, wanted, self._describe([row]), bound)
        self._check_batches(rows, answers, allowed)
        if self.artifact.batching != "equal" and self.subject.is_open:
            for row, wanted, bound in zip(rows, answers, allowed, strict=True):
                for padding in (0.0, *PADDINGS):
                    (found,) = self._answer("padding changes nothing", [row], padding, 3)
                    self._compare("padding changes nothing", found, wanted, self._describe([row]), bound)

    def _check_batches(self, rows: Sequence[Row], answers: Sequence[Arrays], allowed: Sequence[float]) -> None:
        """Rows in one batch: of any lengths where the graph takes them, else of equal ones."""
        if self.artifact.batching != "equal":
            groups = [list(range(len(rows))), [len(rows) - 1, 0], list(range(len(rows)))[::-1][:3]]
        else:
            by_length: dict[int, list[int]] = {}
            for number, row in enumerate(rows):
                by_length.setdefault(self.subject.num_steps(row), []).append(number)
            groups = [group * 2 for group in by_length.values()]
        for group in groups:
            batch = [rows[number] for number in group]
            found = self._answer("row in a batch = row alone", batch)
            for number, answer in zip(group, found, strict=True):
                self._compare("row in a batch = row alone", answer, answers[number], self._describe(batch), allowed[number])

    def _check_pieces(self, min_length: int) -> None:
        """A row cut into pieces whose state is handed on, against the row whole."""
        if not self.subject.is_open:
            self._check_turns()
            return
        for _ in range(2):
            length = max(NUM_PIECES * min_length, int(self.random.integers(6, 12)))
            row = self._row(length)
            cuts = [0, *sorted(self.random.permutation(np.arange(1, length))[: NUM_PIECES - 1].tolist()), length]
            state: Arrays = {}
            for start, end in itertools.pairwise(cuts):
                piece = {
                    spec.name: row[spec.name]
                    if spec.time_axis is None
                    else row[spec.name].take(np.arange(start, end), axis=spec.time_axis)
                    for spec in self.subject.inputs
                }
                (last,) = self._answer("pieces with state = whole", [piece | state])
                if not last:
                    return
                state = {part.input: last[part.output] for part in self.subject.states}
            whole = self.reference.answer(row)
            wanted = {part.output: whole[part.output] for part in self.subject.states}
            self._compare(
                "pieces with state = whole",
                {name: last[name] for name in wanted},
                wanted,
                self._describe([row]),
                self._allow([row])[0],
            )

    def _check_turns(self) -> None:
        """Rows of one length follow one another: the graph's states against the module's."""
        found: Arrays = {}
        wanted: Arrays = {}
        for _ in range(NUM_PIECES):
            row = self._row(None)
            (last,) = self._answer("pieces with state = whole", [row | found])
            if not last:
                return
            own = self.reference.answer(row | wanted)
            bound = self._allow([row | wanted])[0]
            self._compare("pieces with state = whole", last, own, self._describe([row]), bound)
            found = {part.input: last[part.output] for part in self.subject.states}
            wanted = {part.input: own[part.output] for part in self.subject.states}

    def _answer(self, name: str, rows: Sequence[Row], padding: float = 0.0, extra: int = 0) -> list[Arrays]:
        """The graph's answers; a graph that does not run breaks the check, and answers nothing."""
        try:
            return self.graph.answer(rows, padding, extra)
        except Exception as exc:  # onnxruntime's exceptions have no common base
            text = str(exc).splitlines()[0][:200]
            self.found[name] = Check(name, math.inf, f"the graph does not run: {text}", self.tolerance)
            return [{} for _ in rows]

    def _compare(self, name: str, found: Mapping[str, Any], wanted: Mapping[str, Any], case: str, allowed: float) -> None:
        if name in self.found and math.isinf(self.found[name].error):
            return
        for output, values in wanted.items():
            answer = found.get(output)
            if answer is None:
                error, where = math.inf, f'output "{output}" is missing'
            elif answer.size != values.size:
                error, where = math.inf, f'output "{output}" is {answer.shape}, the {self.source} gives {values.shape}: {case}'
            else:
                error, where = _apart(answer.reshape(values.shape), values), f'output "{output}", {case}'
                if math.isnan(error):
                    error, where = math.inf, f'output "{output}" is not finite, {case}'
            check = Check(name, error, where, allowed)
            self.found[name] = max(self.found.get(name, check), check, key=_excess)

    def _measure_rounding(self, rows: Sequence[Row], answers: Sequence[Arrays]) -> float:
        """How far the module's own answers in float32 are from those in float64."""
        try:
            with double_by_default():
                reference = self._double(in_double(self.subject.model))
                wanted = [reference.answer(row) for row in rows]
        except Exception:  # modules may forbid copies, and have float32 written into them
            return 0.0
        return max(
            (
                _apart(answer[name], values)
                for exact, answer in zip(wanted, answers, strict=True)
                for name, values in exact.items()
                if values.dtype.kind == "f" and np.isfinite(values).all() and np.isfinite(answer[name]).all()
            ),
            default=0.0,
        )

    def _measure_time(self) -> tuple[float, float]:
        """Milliseconds for the first example row, the best of a few runs: by the graph and by torch."""
        row = self.subject.rows[0]
        best = []
        for run in (lambda: self.graph.answer([row]), lambda: self.reference.answer(row)):
            seconds = []
            for _ in range(5):
                start = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - start)
            best.append(1000 * min(seconds))
        return best[0], best[1]

    # ------------------------------------------------------------------------------------------------------- probes

    def _find_min_length(self) -> int:
        """The shortest row that the module and the graph both take, and answer alike, with finite numbers."""
        if not self.subject.is_open:
            return 1
        shortest = min(self.subject.num_steps(row) for row in self.subject.rows)
        lowest = shortest
        for length in range(shortest, 0, -1):
            row = self._row(length)
            try:
                wanted, found = self.reference.answer(row), [self.graph.answer([row])[0]]
                if self.artifact.batching != "equal":
                    found += [self.graph.answer([row], padding, 3)[0] for padding in PADDINGS]
            except Exception:  # whatever a module or onnxruntime raises for a row that is too short
                break
            if not all(_are_close(answer, wanted) for answer in found):
                break
            lowest = length
        return lowest

    def _draw(self, min_length: int) -> list[Row]:
        """Rows of other lengths than the example's."""
        if not self.subject.is_open:
            return [self._row(None) for _ in range(2)]
        longest = max(self.subject.num_steps(row) for row in self.subject.rows)
        lengths = [min_length, min_length + 1, longest + 3]
        lengths += self.random.integers(min_length, longest + 4, NUM_PROBES - len(lengths)).tolist()
        return [self._row(int(length)) for length in lengths]

    def _row(self, length: int | None, bounds: tuple[float, float] | None = None) -> Arrays:
        """A row of numbers within `bounds`, or in the range of the example's."""
        row: Arrays = {}
        for spec in self.subject.inputs:
            seen = [example[spec.name] for example in self.subject.rows]
            shape = tuple(axis if isinstance(axis, int) else length or 1 for axis in spec.axes)
            if spec.dtype.kind == "f":
                low, high = bounds or (min(float(array.min()) for array in seen), max(float(array.max()) for array in seen))
                row[spec.name] = self.random.uniform(low, high, shape).astype(np.float32)
            else:
                row[spec.name] = self.random.choice(np.concatenate([array.ravel() for array in seen]), shape)
        return row

    def _describe(self, rows: Sequence[Row]) -> str:
        lengths = [self.subject.num_steps(row) for row in rows]
        return f"lengths {lengths}" if self.subject.is_open else f"batch {len(rows)}"


def _apart(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """The largest difference, relative to the size of what is wanted."""
    with np.errstate(invalid="ignore"):
        return float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0)) / size(wanted)


def _excess(check: Check) -> float:
    """The error as a multiple of what is allowed."""
    return check.error if math.isinf(check.error) or not check.error else check.error / check.allowed


def _are_close(found: Arrays, wanted: Arrays) -> bool:
    """Whether the answers are finite and of the same kind, however they are rounded."""
    return all(
        found[name].size == values.size
        and not math.isnan(size(values))
        and _apart(found[name].reshape(values.shape), values) <= 1e-2
        for name, values in wanted.items()
    )
