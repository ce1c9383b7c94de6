"""What torch's own exporters do with recurrent networks today, beside Sluice: `python -m benchmarks.exporters`.

Each network is exported with its batch and time axes declared open, and run by onnxruntime at another batch size and length
than it was exported at. Prints a Markdown table: the largest difference from torch, or the line that the exporter or
onnxruntime fails with. Rows of different length are not even tried: no exporter takes them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from training.importers.torch.errors import ModuleRefused, Untranslatable
from training.importers.torch.export import first_line, quiet
from training.importers.torch.publishing import publish

FEATURES, HIDDEN = 5, 8
EXPORTED = (2, 11)
"""Rows and steps that the exporters are shown."""
OTHERS = ((2, 11), (5, 11), (2, 17), (1, 7))
EXACT = 1e-4
TIMEOUT_S = 300


class Recurrent(nn.Module):
    """A recurrent layer and its last step."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)[0][:, -1]


class AllSteps(Recurrent):
    """A recurrent layer and all its steps."""

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)[0]


class OwnZeros(Recurrent):
    """First states of zeros, made by hand as in many tutorials."""

    def forward(self, x: Tensor) -> Any:
        zeros = torch.zeros(1, x.size(0), HIDDEN)
        return self.layer(x, (zeros, zeros))[0][:, -1]


class Packed(nn.Module):
    """pack_padded_sequence and back."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0]


class CellLoop(nn.Module):
    """A loop over the steps by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(FEATURES, HIDDEN)

    def forward(self, x: Tensor) -> Any:
        h = c = torch.zeros(x.size(0), HIDDEN)
        for t in range(x.size(1)):
            h, c = self.cell(x[:, t], (h, c))
        return h


def _lstm(**options: Any) -> nn.Module:
    return nn.LSTM(FEATURES, HIDDEN, batch_first=True, **options)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "`nn.LSTM`, last step": lambda: Recurrent(_lstm()),
    "`nn.LSTM`, all steps": lambda: AllSteps(_lstm()),
    "`nn.LSTM`, states of `torch.zeros`": lambda: OwnZeros(_lstm()),
    "`nn.LSTM`, two layers, bidirectional": lambda: Recurrent(_lstm(num_layers=2, bidirectional=True)),
    "`nn.LSTM(proj_size=3)`": lambda: Recurrent(_lstm(proj_size=3)),
    "`nn.GRU`": lambda: Recurrent(nn.GRU(FEATURES, HIDDEN, batch_first=True)),
    "`nn.GRU`, bidirectional": lambda: Recurrent(nn.GRU(FEATURES, HIDDEN, batch_first=True, bidirectional=True)),
    "`nn.RNN`": lambda: Recurrent(nn.RNN(FEATURES, HIDDEN, batch_first=True)),
    "`nn.RNN`, relu, bidirectional": lambda: Recurrent(
        nn.RNN(FEATURES, HIDDEN, batch_first=True, nonlinearity="relu", bidirectional=True)
    ),
    "`pack_padded_sequence`, `nn.LSTM`": lambda: Packed(_lstm()),
    "`nn.LSTMCell` in a loop": CellLoop,
}


def main() -> None:
    """Measure and print; with the number of a network and `dynamo` or `torchscript` as arguments, only that export.

    Each export runs in a process of its own: in torch 2.13 a second one in the same process may freeze what the first did not.
    """
    warnings.simplefilter("ignore")
    if len(sys.argv) == 3:
        print(_exported(_make(int(sys.argv[1])), dynamo=sys.argv[2] == "dynamo"))
        return
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}\n")
    print("| network | `torch.onnx.export` (dynamo) | `torch.onnx.export(dynamo=False)` | Sluice |")
    print("|---|---|---|---|")
    for number, name in enumerate(NETWORKS):
        found = [_in_own_process(number, exporter) for exporter in ("dynamo", "torchscript")]
        print(f"| {name} | {' | '.join([*found, _published(_make(number))])} |", flush=True)


def _make(number: int) -> nn.Module:
    torch.manual_seed(0)
    return list(NETWORKS.values())[number]().eval()


def _in_own_process(number: int, exporter: str) -> str:
    command = [sys.executable, "-m", "benchmarks.exporters", str(number), exporter]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    return found.stdout.strip().splitlines()[-1] if found.stdout.strip() else f"fails: {found.stderr.strip()[-100:]}"


def _arguments(model: nn.Module, rows: int, steps: int, seed: int = 1) -> tuple[Tensor, ...]:
    x = torch.randn(rows, steps, FEATURES, generator=torch.Generator().manual_seed(seed))
    return (x, torch.full((rows,), steps)) if isinstance(model, Packed) else (x,)


def _exported(model: nn.Module, *, dynamo: bool) -> str:
    """What an exporter's graph does at every size, in a few words."""
    example = _arguments(model, *EXPORTED)
    names = ["x", "lengths"][: len(example)]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        options: dict[str, Any] = {"input_names": names, "output_names": ["output"], "dynamo": dynamo}
        if dynamo:
            batch, steps = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("steps", min=1, max=65536)
            options |= {"dynamic_shapes": ({0: batch, 1: steps}, {0: batch})[: len(names)], "external_data": False}
        else:
            options["dynamic_axes"] = {"x": {0: "batch", 1: "steps"}, "lengths": {0: "batch"}, "output": {0: "batch"}}
        try:
            with quiet():
                torch.onnx.export(model, example, path, **options)
            session = onnxruntime.InferenceSession(path, _options(), providers=["CPUExecutionProvider"])
        except Exception as exc:  # exporters and onnxruntime raise what they like
            return f"fails: {_short(first_line(exc))}"
        return _compare(model, lambda given: session.run(None, dict(zip(names, given, strict=True)))[0])


def _compare(model: nn.Module, run: Callable[[list[NDArray[Any]]], NDArray[Any]]) -> str:
    worst, at = 0.0, EXPORTED
    for rows, steps in OTHERS:
        given = _arguments(model, rows, steps)
        with torch.no_grad():
            expected = model(*given).numpy()
        try:
            found = run([tensor.numpy() for tensor in given])
        except Exception as exc:  # onnxruntime's exceptions have no common base
            return f"fails at {rows} rows of {steps} steps: {_short(first_line(exc))}"
        error = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
        if error > worst:
            worst, at = error, (rows, steps)
    if worst <= EXACT:
        return f"equal ({worst:.0e})"
    return f"**wrong** by {worst:.2g} at {at[0]} rows of {at[1]} steps"


def _published(model: nn.Module) -> str:
    rows = [np.random.default_rng(length).standard_normal((length, FEATURES)).astype(np.float32) for length in (6, 9)]
    lengths = "lengths" if isinstance(model, Packed) else None
    try:
        result = publish(model, "network", example=rows, lengths=lengths, dry_run=True)
    except (ModuleRefused, Untranslatable) as exc:
        return f"refused: {_short(str(exc))}"
    return f"equal ({max(check.error for check in result.verdict.checks):.0e}), rows of any length in one batch"


def _options() -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return options


def _short(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:140]


if __name__ == "__main__":
    main()
