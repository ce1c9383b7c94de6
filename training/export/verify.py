"""Verifies that a graph computes what the network does, for any batch, in four checks.

graph = torch; a row in a batch = the row alone; padded = not padded; streamed in pieces = whole. Each is measured at
several batch sizes and lengths and at rows of several scales, with garbage in the padding; the tolerance follows the network's
own rounding (`rounding.py`). Writes no graph, publishes none, and scores nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from training.errors import TrainingError
from training.export.rounding import NUM_MOVED, allow, double_by_default, in_double, move_weights, one_thread
from training.network.network import Network

TOLERANCE = 1e-4
BATCH_SIZES = (1, 2, 3, 7)
FURTHER_BATCH_SIZES = (1, 3)  # at every scale but the first
MIN_SHARE_DETERMINED = 0.5  # of the rows at a scale, those at which the network does not amplify roundings beyond all bounds
MAX_EXAMPLE_ROWS = 16
NUM_PIECES = 3
SHARE_MASKED = 0.2

Check = Literal["graph_vs_torch", "row_vs_batch", "padded_vs_alone", "streamed_vs_whole"]
Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Verification:
    """The largest error of each check, relative to the scale of the row it is in; None: the network cannot stream.

    `rounding` is the network's own at these rows, `rows` says which they were, and `notes` which were left out and why.
    """

    graph_vs_torch: float
    row_vs_batch: float
    padded_vs_alone: float
    streamed_vs_whole: float | None
    rounding: float = 0.0
    rows: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> dict[str, float | None]:
        """The four checks by name."""
        return {
            "graph_vs_torch": self.graph_vs_torch,
            "row_vs_batch": self.row_vs_batch,
            "padded_vs_alone": self.padded_vs_alone,
            "streamed_vs_whole": self.streamed_vs_whole,
        }


@dataclass(frozen=True)
class Finding:
    """The worst case of one check: the furthest beyond what is allowed there."""

    check: Check
    error: float
    case: str
    allowed: float = TOLERANCE

    @property
    def is_met(self) -> bool:
        return self.error <= self.allowed

    def __str__(self) -> str:
        return f"{self.check}: error {self.error:.3g} at {self.case}"


@dataclass(frozen=True)
class _Probe:
    """Rows that a graph is verified at; `examples` instead of drawn ones."""

    name: str
    draw: Callable[[np.random.Generator, tuple[int, ...]], NDArray[Any]] | None = None
    examples: Sequence[Tensors] = ()


class VerificationFailed(TrainingError):
    """A graph does not compute what the network does: each check that it fails, with its worst error and the shapes there."""

    def __init__(self, findings: Sequence[Finding], tolerance: float) -> None:
        lines = "; ".join(str(finding) for finding in findings)
        super().__init__(f"the graph fails {len(findings)} of the four checks (tolerance {tolerance:g}): {lines}")
        self.findings = tuple(findings)
        self.failed = tuple(finding.check for finding in findings)


class NetworkUndetermined(VerificationFailed):
    """The network itself, at all rows that it was tried at, overflows or gives what is mostly rounding."""

    def __init__(self, notes: Sequence[str]) -> None:
        hint = "rows such as it was trained on (--example) may be better behaved"
        TrainingError.__init__(self, f"nothing can be verified of this network: {'; '.join(notes)}; {hint}")
        self.findings, self.failed = (), ()


def verify(
    network: Network,
    graph: bytes,
    seed: int,
    *,
    tolerance: float = TOLERANCE,
    original: bytes | None = None,
    examples: Sequence[Mapping[str, NDArray[Any]]] = (),
) -> Verification:
    """Measure the four checks of `graph` (a serialised model) at random rows drawn by `seed`.

    With `original`, the graph of which `graph` is an approximation, that one is compared with instead of torch: the distance
    must be finite, but may exceed `tolerance`; the other three checks may not. The network's weights are then not used.

    The network runs in eval mode, on the device where it is. What an error is relative to, and which scales rows are drawn
    from, the task's head decides; `examples` are rows of the caller, each a batch of one. Raises VerificationFailed when an
    error is above `tolerance` and above what the network's own rounding explains, or not finite, or when the graph does not
    load, does not run at some shape, or has other outputs; NetworkUndetermined, when the network by itself overflows.
    """
    was_training = network.training
    network.eval()
    try:
        with one_thread():
            verifier = _Verifier(network, graph, seed, tolerance, original)
            findings = verifier.measure(examples)
    finally:
        network.train(was_training)
    failed = [finding for finding in findings.values() if not finding.is_met]
    if failed:
        raise VerificationFailed(failed, max(tolerance, *(finding.allowed for finding in failed)))
    return Verification(
        graph_vs_torch=findings["graph_vs_torch"].error,
        row_vs_batch=findings["row_vs_batch"].error,
        padded_vs_alone=findings["padded_vs_alone"].error,
        streamed_vs_whole=findings["streamed_vs_whole"].error if network.can_stream else None,
        rounding=verifier.rounding,
        rows=tuple(verifier.rows),
        notes=tuple(verifier.notes),
    )


class _Verifier:
    """One pass over all cases; keeps the worst one of each check."""

    def __init__(self, network: Network, graph: bytes, seed: int, tolerance: float, original: bytes | None) -> None:
        self.network = network
        self.random = np.random.default_rng(seed)
        self.head = network.head
        self.sequence = network.head.input_name  # whose second axis is time, if one is
        self.further = network.head.further_inputs
        # The inputs with a step for each of the sequence's.
        self.in_time = (self.sequence, *(name for name, shape in self.further.items() if shape.is_open))
        self.findings: dict[Check, Finding] = {}
        self.session = _open(graph)
        self.original = None if original is None else _open(original)
        self.exact = in_double(network) if original is None else None
        self.output_names = [output.name for output in self.session.get_outputs()]
        self.tolerance = tolerance
        self.probe = _Probe("")
        self.follows = False  # whether the tolerance follows how far a row's answer moves with the network's roundings
        self.moved: list[Network] = []
        self.num_rows = self.num_undetermined = 0
        self.rounding = 0.0
        self.rows: list[str] = []
        self.notes: list[str] = []

    def measure(self, examples: Sequence[Mapping[str, NDArray[Any]]]) -> dict[Check, Finding]:
        for probe in self._probes(examples):
            self.probe, known, self.findings = probe, self.findings, {}
            rounding = self.rounding
            fault = self._measure_probe()
            if fault:
                self.notes.append(fault)
                self.findings, self.rounding = known, rounding
                continue
            self.rows.append(probe.name)
            # Over several scales the one counts that goes furthest beyond its own bound.
            self.findings = {
                **known,
                **{check: max(known.get(check, own), own, key=_excess) for check, own in self.findings.items()},
            }
        if not self.rows:
            raise NetworkUndetermined(self.notes)
        return self.findings

    def _measure_probe(self) -> str:
        """Measure the checks at the rows of one probe; says why nothing can be verified there, if so."""
        batches = self._batches()
        try:
            answers = [self._run_torch(batch) if self.original is None else self._run_original(batch) for batch in batches]
        except _DoesNotRun as exc:
            self._note(exc.check, math.inf, str(exc))
            return ""
        if self.exact is not None:
            fault = self._measure_rounding(self.exact, batches, answers)
            if fault:
                return fault
        self.follows = False
        self._measure_batches(batches, answers)
        if self.exact is None or all(finding.is_met for finding in self.findings.values()):
            return ""
        self.findings, self.follows = {}, True
        self.num_rows = self.num_undetermined = 0
        self._measure_batches(batches, answers)
        if self.num_undetermined > (1 - MIN_SHARE_DETERMINED) * self.num_rows:
            share = f"{self.num_undetermined} of {self.num_rows} answers"
            return f"the network amplifies its own rounding at {self.probe.name}: {share} are decided by it"
        return ""

    def _measure_batches(self, batches: Sequence[Tensors], answers: Sequence[Tensors]) -> None:
        for batch, expected in zip(batches, answers, strict=True):
            try:
                allowed = self._allow(batch)
                # An approximation of another graph is compared with it only to be finite.
                distance = allowed if self.original is None else np.full(len(allowed), np.finfo(np.float64).max)
                found = self._cut(batch, self._run(batch))
                self._compare("graph_vs_torch", batch, found, self._cut(batch, expected), distance)
                self._measure_rows(batch, allowed)
                if self.network.can_stream and not self.probe.examples:
                    self._measure_pieces(len(batch[self.sequence]))
            except _DoesNotRun as exc:
                self._note(exc.check, math.inf, str(exc))

    def _allow(self, batch: Tensors) -> NDArray[np.float64]:
        """(B,): the error that each row may have."""
        num_rows = len(batch[self.sequence])
        if not self.follows:
            return np.full(num_rows, self.tolerance)
        assert self.exact is not None
        self.moved = self.moved or [move_weights(self.network, number) for number in range(NUM_MOVED)]
        exact = self._cut(batch, self._run_exact(self.exact, batch))
        reach = np.zeros(num_rows)
        for moved in self.moved:
            for name, values in self._cut(batch, self._run_exact(moved, batch)).items():
                reach = np.maximum(reach, self._apart(name, values, exact[name], batch))
        allowed = allow(self.tolerance, reach)
        self.num_rows += num_rows
        self.num_undetermined += int(np.isinf(allowed).sum())
        return allowed

    def _apart(self, name: str, values: NDArray[Any], exact: NDArray[Any], batch: Tensors) -> NDArray[np.float64]:
        """(B,): how far answers differ, relative to their rows; 0 for rows of which every step is masked."""
        apart = np.abs(values - exact).reshape(len(values), -1).max(axis=1, initial=0.0) / self.head.error_scale(
            name, exact, batch
        )
        return np.where(self._is_masked(batch), 0.0, apart)

    def _probes(self, examples: Sequence[Mapping[str, NDArray[Any]]]) -> list[_Probe]:
        """Rows of the caller, and drawn ones of each scale that the head knows."""
        own = [_Probe("the example's rows", examples=[dict(row) for row in examples[:MAX_EXAMPLE_ROWS]])] if examples else []
        if self.network.vocabulary_size is not None:
            return [*own, _Probe("random token ids")]
        return [*own, *(_Probe(f"rows {name}", draw) for name, draw in self.head.draws().items())]

    def _batches(self) -> list[Tensors]:
        if self.probe.examples:
            return [self._collate(self.probe.examples)]
        sizes = FURTHER_BATCH_SIZES if self.rows else BATCH_SIZES
        return [self._draw(batch_size) for batch_size in sizes]

    def _measure_rounding(self, network: Network, batches: Sequence[Tensors], answers: Sequence[Tensors]) -> str:
        """Compare with the network in float64; says where it overflows by itself."""
        for batch, found in zip(batches, answers, strict=True):
            exact, answer = self._cut(batch, self._run_exact(network, batch)), self._cut(batch, found)
            is_read = ~self._is_masked(batch)
            for name, values in answer.items():
                if not np.isfinite(values[is_read]).all():
                    what = "in float32" if np.isfinite(exact[name][is_read]).all() else "in float64 too"
                    return f"the network overflows by itself at {self.probe.name}: its own answer is not finite, {what}"
                self.rounding = max(self.rounding, float(self._apart(name, values, exact[name], batch).max(initial=0.0)))
        return ""

    def _measure_rows(self, batch: Tensors, allowed: NDArray[np.float64]) -> None:
        outputs = self._run(batch)
        for row in range(len(batch[self.sequence])):
            padded = _rows(batch, slice(row, row + 1))
            alone = self._without_padding(padded)
            found = self._cut(padded, self._run(padded, "row_vs_batch"))
            in_batch = self._cut(padded, _rows(outputs, slice(row, row + 1)))
            own = allowed[row : row + 1]
            self._compare("row_vs_batch", batch, in_batch, found, own, scale_of=padded)
            self._compare("padded_vs_alone", padded, found, self._cut(alone, self._run(alone, "padded_vs_alone")), own)

    def _measure_pieces(self, batch_size: int) -> None:
        """Run each row in pieces cut at its own places, each piece from the state in which the one before ended."""
        whole = self._draw(batch_size, shortest=max(self.network.min_length, NUM_PIECES))
        lengths = whole["lengths"]
        cuts = [np.sort(self.random.permutation(np.arange(1, n))[: NUM_PIECES - 1]) for n in lengths]
        bounds = np.array([[0, *cut, n] for cut, n in zip(cuts, lengths, strict=True)])
        state = {part.input: whole[part.input] for part in self.network.state}
        expected = self._cut(whole, self._run(whole, "streamed_vs_whole"))
        streamed = {name: np.zeros_like(expected[name]) for name in self._open_outputs() if name in expected}
        outputs: Tensors = {}
        for start, end in zip(bounds.T[:-1], bounds.T[1:], strict=True):
            piece = {**self._garbage(batch_size, int((end - start).max()) + 1), "lengths": end - start, **state}
            piece |= {name: whole[name] for name in self.further if name not in self.in_time}
            for row in range(batch_size):
                for name in self.in_time:
                    piece[name][row, : end[row] - start[row]] = whole[name][row, start[row] : end[row]]
            outputs = self._run(piece, "streamed_vs_whole")
            state = {part.input: outputs[part.output] for part in self.network.state}
            for name, values in streamed.items():
                for row in range(batch_size):
                    values[row, start[row] : end[row]] = outputs[name][row, : end[row] - start[row]]
        self._compare("streamed_vs_whole", whole, {**outputs, **streamed}, expected, self._allow(whole))

    def _compare(
        self,
        check: Check,
        case: Tensors,
        found: Tensors,
        expected: Tensors,
        allowed: NDArray[np.float64],
        scale_of: Tensors | None = None,
    ) -> None:
        for name, values in expected.items():
            if name not in found:
                self._note(check, math.inf, f'output "{name}" is missing')
            elif found[name].shape != values.shape:
                self._note(check, math.inf, f'output "{name}" is {found[name].shape}, not {values.shape}')
            else:
                axes = tuple(range(1, values.ndim))
                inputs = scale_of or case
                error = np.abs(found[name].astype(np.float64) - values).max(axis=axes)
                error = error / self.head.error_scale(name, values, inputs)
                # A mean of no steps at all is NaN, and must be so on both sides.
                is_nothing = np.isnan(found[name]).all(axis=axes) & np.isnan(values).all(axis=axes)
                error[self._is_masked(inputs) & is_nothing] = 0
                lengths = f", lengths {case['lengths'].tolist()}" if "lengths" in case else ""
                rows = "" if self.network.vocabulary_size is not None else f", {self.probe.name}"
                where = f'output "{name}", batch {len(case[self.sequence])}{lengths}{rows}'
                for number, bound in zip(error.tolist(), allowed.tolist(), strict=True):
                    self._note(check, number if math.isfinite(number) else math.inf, where, bound)

    def _note(self, check: Check, error: float, case: str, allowed: float | None = None) -> None:
        finding = Finding(check, error, case, self.tolerance if allowed is None else allowed)
        if check not in self.findings or _excess(finding) > _excess(self.findings[check]):
            self.findings[check] = finding

    def _is_masked(self, inputs: Tensors) -> NDArray[np.bool_]:
        """(B,), true for rows of which every step is masked."""
        values = inputs[self.sequence]
        if self.network.vocabulary_size is None and self.network.mask_value is None:
            return np.zeros(len(values), bool)
        lengths = inputs.get("lengths", np.full(len(values), values.shape[1]))
        masked = values == (self.network.mask_value or 0)
        masked = masked.reshape(*masked.shape[:2], -1).all(2)
        return np.asarray((masked | (np.arange(values.shape[1]) >= lengths[:, None])).all(1))

    def _run(self, inputs: Tensors, check: Check = "graph_vs_torch") -> Tensors:
        try:
            outputs = self.session.run(None, inputs)
        except Exception as exc:
            shapes = {name: values.shape for name, values in inputs.items()}
            raise _DoesNotRun(check, f"{shapes}: {exc}") from exc
        return dict(zip(self.output_names, outputs, strict=True))

    def _run_original(self, inputs: Tensors) -> Tensors:
        assert self.original is not None
        names = [output.name for output in self.original.get_outputs()]
        return dict(zip(names, self.original.run(None, inputs), strict=True))

    @torch.no_grad()
    def _run_torch(self, inputs: Tensors) -> Tensors:
        device = next((parameter.device for parameter in self.network.parameters()), torch.device("cpu"))
        outputs = self.network({name: torch.from_numpy(values).to(device) for name, values in inputs.items()})
        return {name: values.cpu().numpy() for name, values in outputs.items()}

    @torch.no_grad()
    def _run_exact(self, network: Network, inputs: Tensors) -> Tensors:
        given = {name: torch.from_numpy(values) for name, values in inputs.items()}
        with double_by_default():
            outputs = network({name: x.double() if x.is_floating_point() else x for name, x in given.items()})
        return {name: values.numpy() for name, values in outputs.items()}

    def _collate(self, rows: Sequence[Tensors]) -> Tensors:
        """Rows of the caller in one batch, padded with garbage."""
        sequences = [row[self.sequence][0] for row in rows]
        if not self.network.has_lengths:
            return self._with_state({self.sequence: np.stack(sequences)}, len(rows))
        lengths = np.array([len(values) for values in sequences])
        inputs = {**self._garbage(len(rows), int(lengths.max()) + 5), "lengths": lengths}
        inputs |= {name: np.concatenate([row[name] for row in rows]) for name in self.further if name not in self.in_time}
        for number, row in enumerate(rows):
            for name in self.in_time:
                inputs[name][number, : lengths[number]] = row[name][0]
        return self._with_state(inputs, len(rows))

    def _draw(self, batch_size: int, shortest: int | None = None) -> Tensors:
        """Random rows of different length, all of them padded with garbage, and a random state."""
        if not self.network.has_lengths:
            rows = [self._draw_row(self.head.source.fixed_axes) for _ in range(batch_size)]
            return self._with_state({self.sequence: np.stack(rows)}, batch_size)
        shortest = shortest or self.network.min_length
        spread = 12 + 3 * self.head.step
        lengths = shortest + self.random.integers(0, spread, batch_size)
        lengths[0] = shortest
        inputs = {**self._garbage(batch_size, int(lengths.max()) + 5), "lengths": lengths}
        for row, length in enumerate(lengths):
            inputs[self.sequence][row, :length] = self._draw_row((int(length), *self._axes_behind_time()))
        for name, shape in self.further.items():
            if not shape.is_open:
                inputs[name] = self._draw_further(name, (batch_size, *shape.fixed_axes))
                continue
            for row, length in enumerate(lengths):
                inputs[name][row, :length] = self._draw_further(name, (int(length), shape.features))
        return self._with_state(inputs, batch_size)

    def _draw_further(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        return self.head.draw_further(name, self.random, shape).astype(np.float32)

    def _with_state(self, inputs: Tensors, batch_size: int) -> Tensors:
        for part in self.network.state:
            inputs[part.input] = self.random.uniform(*part.range, (batch_size, part.units)).astype(np.float32)
        return inputs

    def _axes_behind_time(self) -> tuple[int, ...]:
        return tuple(axis for axis in self.head.source.axes[1:] if isinstance(axis, int))

    def _garbage(self, batch_size: int, num_steps: int) -> Tensors:
        """What may stand in the padding: any ids, or numbers much larger than those of the rows."""
        shape = (batch_size, num_steps, *self._axes_behind_time())
        if self.network.vocabulary_size is not None:
            return {self.sequence: self.random.integers(0, self.network.vocabulary_size, shape)}
        shapes = {self.sequence: shape}
        shapes |= {name: (*shape[:2], self.further[name].features) for name in self.in_time if name in self.further}
        return {name: (1e6 * self.random.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}

    def _draw_row(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """Values or ids of one row, some steps of which are what a masking layer masks."""
        network = self.network
        if network.vocabulary_size is not None:
            ids = self.random.integers(0, network.vocabulary_size, shape)
            return np.asarray(ids * (self.random.random(shape) > SHARE_MASKED))
        assert self.probe.draw is not None
        values = self.probe.draw(self.random, shape).astype(np.float32)
        if network.mask_value is not None:
            values[self.random.random(shape[:-1]) < SHARE_MASKED] = network.mask_value
        return values

    def _without_padding(self, row: Tensors) -> Tensors:
        if "lengths" not in row:
            return row
        return {name: values[:, : row["lengths"][0]] if name in self.in_time else values for name, values in row.items()}

    def _open_outputs(self) -> tuple[str, ...]:
        """The outputs with a time axis."""
        return tuple(name for name, shape in self.network.outputs.items() if shape.is_open)

    def _cut(self, inputs: Tensors, outputs: Tensors) -> Tensors:
        """Outputs up to the longest row, with zeros behind each row's own end."""
        cut = dict(outputs)
        for name in self._open_outputs():
            if name in outputs and outputs[name].ndim > 1:
                lengths = inputs["lengths"]
                values = outputs[name][:, : lengths.max()].copy()
                values[np.arange(values.shape[1]) >= lengths[:, None]] = 0
                cut[name] = values
        return cut


def _excess(finding: Finding) -> float:
    """The error as a multiple of what is allowed."""
    if math.isinf(finding.error) or not finding.error:
        return finding.error
    return finding.error / finding.allowed if finding.allowed else math.inf


class _DoesNotRun(TrainingError):
    def __init__(self, check: Check, message: str) -> None:
        super().__init__(f"the graph does not run at {message}")
        self.check = check


def _open(graph: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised, and are in the finding
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # onnxruntime's exceptions have no common base
        raise VerificationFailed([Finding("graph_vs_torch", math.inf, f"load: {exc}")], TOLERANCE) from exc


def _rows(tensors: Tensors, rows: slice) -> Tensors:
    return {name: values[rows] for name, values in tensors.items()}
