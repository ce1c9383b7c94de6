"""M4's hourly series by forecasters of other libraries, on this machine and in a bounded time of training: make forecasters.

Each is trained by `benchmarks/rivals/forecasters.py` in an environment of its own, and scored as `sluice evaluate m4-hourly`
scores ours. Prints a table; the figures of docs/explanation/scores.md are such a run's.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.rivals.forecasters import FORECASTERS
from benchmarks.servers import ROOT
from training.evaluation.competitions import LEVELS, M4_HOURLY, measure_m4_hourly, read_part, weighted_quantile_loss
from training.evaluation.naive import Floats

SCRIPT = ROOT / "benchmarks" / "rivals" / "forecasters.py"
SECONDS = 440.0
"""What `forecast-hourly` took, on one core."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train and score each, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FORECASTERS)}; left out: all")
    parser.add_argument("--python", type=Path, required=True, help="that of an environment with neuralforecast and gluonts")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of training, each, by the clock")
    options = parser.parse_args(argv)
    if unknown := set(options.names) - FORECASTERS.keys():
        parser.error(f"no forecaster {min(unknown)!r}; there are {', '.join(FORECASTERS)}")
    folder = Path(os.environ["SLUICE_DATA"]) if os.environ.get("SLUICE_DATA") else None
    histories, truth = read_part(M4_HOURLY, folder)
    print("| | sMAPE | MASE | OWA | weighted quantile loss | inside the 80 % interval | processor seconds |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in options.names or FORECASTERS:
        before = _processor_seconds()
        quantiles = train(name, options.python, histories, options.seconds)
        print(table_row(name, histories, truth, quantiles, _processor_seconds() - before), flush=True)
    return 0


def train(name: str, python: Path, histories: Iterable[Floats], seconds: float) -> Floats:
    """Quantiles (series, horizon, levels) by a forecaster that learns for `seconds` on one thread."""
    with tempfile.TemporaryDirectory() as temporary:
        source, out = Path(temporary) / "train.csv", Path(temporary) / "out.npz"
        rows = [f"{row},{','.join(map(repr, history.tolist()))}" for row, history in enumerate(histories)]
        source.write_text("\n".join(["id", *rows]) + "\n", encoding="utf-8")
        command = [str(python.absolute()), str(SCRIPT), name, str(source), str(out), "--seconds", str(seconds)]
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=temporary, env=environ, check=True, stdout=subprocess.DEVNULL)
        found: Floats = np.load(out)["quantiles"]
    return np.sort(found, axis=-1)


def _processor_seconds() -> float:
    """Of the processes that have ended, with the imports and forecasts of each."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table_row(name: str, histories: Sequence[Floats], truth: Floats, quantiles: Floats, seconds: float) -> str:
    """A line of the table; the point forecast is the median."""
    measures = measure_m4_hourly(histories, truth, quantiles[..., LEVELS.index(0.5)])
    inside = ((truth >= quantiles[..., 0]) & (truth <= quantiles[..., -1])).mean()
    figures = f"{measures['sMAPE']:.2f} | {measures['MASE']:.3f} | {measures['OWA']:.3f}"
    return f"| {name} | {figures} | {weighted_quantile_loss(truth, quantiles):.4f} | {100 * inside:.0f} % | {seconds:.0f} |"


if __name__ == "__main__":
    raise SystemExit(main())
