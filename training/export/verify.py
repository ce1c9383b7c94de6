"""Verifies that a graph computes what the network does, for any batch, in four checks.

graph = torch; a row in a batch = the row alone; padded = not padded; streamed in pieces = whole. Each is measured at
several batch sizes and lengths, with garbage in the padding. Writes no graph, publishes none, and scores nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from training.errors import TrainingError
from training.network.network import Network

TOLERANCE = 1e-4
BATCH_SIZES = (1, 2, 3, 7)
NUM_PIECES = 3
SHARE_MASKED = 0.2

Check = Literal["graph_vs_torch", "row_vs_batch", "padded_vs_alone", "streamed_vs_whole"]
Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Verification:
    """The largest error of each check, relative to the scale of the row it is in; None: the network cannot stream."""

    graph_vs_torch: float
    row_vs_batch: float
    padded_vs_alone: float
    streamed_vs_whole: float | None


@dataclass(frozen=True)
class Finding:
    """The worst case of one check."""

    check: Check
    error: float
    case: str

    def __str__(self) -> str:
        return f"{self.check}: error {self.error:.3g} at {self.case}"


class VerificationFailed(TrainingError):
    """A graph does not compute what the network does: each check that it fails, with its worst error and the shapes there."""

    def __init__(self, findings: Sequence[Finding], tolerance: float) -> None:
        lines = "; ".join(str(finding) for finding in findings)
        super().__init__(f"the graph fails {len(findings)} of the four checks (tolerance {tolerance:g}): {lines}")
        self.findings = tuple(findings)
        self.failed = tuple(finding.check for finding in findings)


def verify(
    network: Network, graph: bytes, seed: int, *, tolerance: float = TOLERANCE, original: bytes | None = None
) -> Verification:
    """Measure the four checks of `graph` (a serialised model) at random rows drawn by `seed`.

    With `original`, the graph of which `graph` is an approximation, that one is compared with instead of torch: the distance
    must be finite, but may exceed `tolerance`; the other three checks may not. The network's weights are then not used.

    The network runs in eval mode, on the device where it is. What an error is relative to, the task's head decides. Raises
    VerificationFailed when one is above `tolerance` or not finite, or when the graph does not load, does not run at some
    shape, or has other outputs.
    """
    was_training = network.training
    network.eval()
    try:
        findings = _Verifier(network, graph, seed, original).measure()
    finally:
        network.train(was_training)
    limits: dict[Check, float] = {} if original is None else {"graph_vs_torch": np.finfo(np.float64).max}
    failed = [finding for finding in findings.values() if not finding.error <= limits.get(finding.check, tolerance)]
    if failed:
        raise VerificationFailed(failed, tolerance)
    return Verification(
        graph_vs_torch=findings["graph_vs_torch"].error,
        row_vs_batch=findings["row_vs_batch"].error,
        padded_vs_alone=findings["padded_vs_alone"].error,
        streamed_vs_whole=findings["streamed_vs_whole"].error if network.can_stream else None,
    )


class _Verifier:
    """One pass over all cases; keeps the worst one of each check."""

    def __init__(self, network: Network, graph: bytes, seed: int, original: bytes | None = None) -> None:
        self.network = network
        self.random = np.random.default_rng(seed)
        self.head = network.head
        self.sequence = network.head.input_name  # whose second axis is time, if one is
        self.findings: dict[Check, Finding] = {}
        self.session = _open(graph)
        self.original = None if original is None else _open(original)
        self.output_names = [output.name for output in self.session.get_outputs()]

    def measure(self) -> dict[Check, Finding]:
        for batch_size in BATCH_SIZES:
            batch = self._draw(batch_size)
            try:
                expected = self._run_torch(batch) if self.original is None else self._run_original(batch)
                self._compare("graph_vs_torch", batch, self._cut(batch, self._run(batch)), self._cut(batch, expected))
                self._measure_rows(batch)
                if self.network.can_stream:
                    self._measure_pieces(batch_size)
            except _DoesNotRun as exc:
                self._note(exc.check, math.inf, str(exc))
        return self.findings

    def _measure_rows(self, batch: Tensors) -> None:
        outputs = self._run(batch)
        for row in range(len(batch[self.sequence])):
            padded = _rows(batch, slice(row, row + 1))
            alone = self._without_padding(padded)
            found = self._cut(padded, self._run(padded, "row_vs_batch"))
            in_batch = self._cut(padded, _rows(outputs, slice(row, row + 1)))
            self._compare("row_vs_batch", batch, in_batch, found, scale_of=padded)
            self._compare("padded_vs_alone", padded, found, self._cut(alone, self._run(alone, "padded_vs_alone")))

    def _measure_pieces(self, batch_size: int) -> None:
        """Run each row in pieces cut at its own places, each piece from the state in which the one before ended."""
        whole = self._draw(batch_size, shortest=max(self.network.min_length, NUM_PIECES))
        lengths = whole["lengths"]
        cuts = [np.sort(self.random.permutation(np.arange(1, n))[: NUM_PIECES - 1]) for n in lengths]
        bounds = np.array([[0, *cut, n] for cut, n in zip(cuts, lengths, strict=True)])
        state = {part.input: whole[part.input] for part in self.network.state}
        outputs: Tensors = {}
        for start, end in zip(bounds.T[:-1], bounds.T[1:], strict=True):
            piece = {**self._garbage(batch_size, int((end - start).max()) + 1), "lengths": end - start, **state}
            for row in range(batch_size):
                piece[self.sequence][row, : end[row] - start[row]] = whole[self.sequence][row, start[row] : end[row]]
            outputs = self._run(piece, "streamed_vs_whole")
            state = {part.input: outputs[part.output] for part in self.network.state}
        last, expected = self._last(piece, outputs), self._last(whole, self._run(whole, "streamed_vs_whole"))
        self._compare("streamed_vs_whole", whole, last, expected)

    def _compare(self, check: Check, case: Tensors, found: Tensors, expected: Tensors, scale_of: Tensors | None = None) -> None:
        self._note(check, -1.0, "")
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
                worst = float(error.max()) if np.isfinite(error).all() else math.inf
                lengths = f", lengths {case['lengths'].tolist()}" if "lengths" in case else ""
                self._note(check, worst, f'output "{name}", batch {len(case[self.sequence])}{lengths}')

    def _note(self, check: Check, error: float, case: str) -> None:
        if check not in self.findings or error > self.findings[check].error:
            self.findings[check] = Finding(check, error, case)

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
        return self._with_state(inputs, batch_size)

    def _with_state(self, inputs: Tensors, batch_size: int) -> Tensors:
        for part in self.network.state:
            inputs[part.input] = self.random.uniform(-1, 1, (batch_size, part.units)).astype(np.float32)
        return inputs

    def _axes_behind_time(self) -> tuple[int, ...]:
        return tuple(axis for axis in self.head.source.axes[1:] if isinstance(axis, int))

    def _garbage(self, batch_size: int, num_steps: int) -> Tensors:
        """What may stand in the padding: any ids, or numbers much larger than those of the rows."""
        shape = (batch_size, num_steps, *self._axes_behind_time())
        if self.network.vocabulary_size is not None:
            return {self.sequence: self.random.integers(0, self.network.vocabulary_size, shape)}
        return {self.sequence: (1e6 * self.random.standard_normal(shape)).astype(np.float32)}

    def _draw_row(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """Values or ids of one row, some steps of which are what a masking layer masks."""
        network = self.network
        if network.vocabulary_size is not None:
            ids = self.random.integers(0, network.vocabulary_size, shape)
            return np.asarray(ids * (self.random.random(shape) > SHARE_MASKED))
        values = self.head.draw(self.random, shape)
        if network.mask_value is not None:
            values[self.random.random(shape[:-1]) < SHARE_MASKED] = network.mask_value
        return values

    def _without_padding(self, row: Tensors) -> Tensors:
        if "lengths" not in row:
            return row
        return {name: values[:, : row["lengths"][0]] if name == self.sequence else values for name, values in row.items()}

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

    def _last(self, inputs: Tensors, outputs: Tensors) -> Tensors:
        """Of outputs with a time axis each row's last step."""
        rows = np.arange(len(inputs[self.sequence]))
        return {
            name: values[rows, inputs["lengths"] - 1] if name in self._open_outputs() else values
            for name, values in outputs.items()
        }


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
