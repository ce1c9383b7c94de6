"""Drift: the inputs and outputs of models now, compared with those of their training part. Samples of batches in, scores out.

A sample is some rows of a batch, copied where the batch ran and measured later on a thread. The values of a feature are counted
in the bins of the manifest's histogram, over a sliding window, and compared by two measures:

* the population stability index, the symmetric Kullback-Leibler divergence of the two histograms (Siddiqi, "Credit Risk
  Scorecards", 2006; its distribution: Yurdakul, "Statistical Properties of Population Stability Index", 2018);
* the Kolmogorov-Smirnov distance, the largest difference of the two distribution functions, at the edges of the bins.

Workers exchange their counts through files in the folder that they share. Knows nothing of Prometheus.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.manifest import FeatureStatistics, Statistics
from service.observability.worker_files import WorkerFiles

log = logging.getLogger(__name__)

Array = NDArray[Any]
Measure = Callable[[Mapping[str, Array], Mapping[str, Array]], Mapping[str, Array]]
"""Inputs and outputs of a graph → feature → a value for each row."""

UPDATE_S = 5.0
"""How often samples are counted and workers exchange their counts."""
SAMPLE_S = 0.05
"""At most one batch of a model in so much time is sampled: what that costs does not grow with the traffic."""
MAX_SAMPLES = 128
"""Samples that may wait to be counted: those of an update, and some more."""
MAX_ROWS, MAX_SAMPLE_BYTES = 16, 64 * 1024
"""Of one sample; a row that alone is larger is not sampled."""
NUM_SLOTS = 12
"""The window slides in steps of a twelfth of it."""
MIN_ROWS = 200
"""With fewer rows a score would say how few there are: without any drift its mean is (bins - 1) / rows."""
LEAST_SHARE = 1e-4
"""Of a bin that is empty, in place of 0, of which there is no logarithm."""


class FeatureDrift(NamedTuple):
    """How far a feature is from the training part."""

    psi: float
    """Population stability index: below 0.1 as good as none, from 0.25 on a lot, by the usual reading."""
    ks: float
    """Kolmogorov-Smirnov distance, 0 to 1."""


class ModelDrift(NamedTuple):
    """What the window of one version of a model holds, of all workers."""

    num_rows: int
    features: Mapping[str, FeatureDrift]
    """Empty as long as there are fewer than MIN_ROWS rows."""


Counts = list[Array]
"""For each feature of the statistics, in their order, the rows in each bin."""


def compare(expected: FeatureStatistics, counts: Array) -> FeatureDrift | None:
    """The drift of one feature from its counts; None where no row had it."""
    total = counts.sum()
    if not total:
        return None
    shares, found = np.array(expected.shares), counts / total
    ks = float(np.abs(np.cumsum(found) - np.cumsum(shares)).max())
    p, q = np.maximum(shares, LEAST_SHARE), np.maximum(found, LEAST_SHARE)
    return FeatureDrift(float(((q - p) * np.log(q / p)).sum()), min(1.0, ks))


class Sampler:
    """The window of one version of a model in this process. `offer` may be called on any thread, all else by its monitor."""

    def __init__(self, statistics: Statistics, measure: Measure, window_s: float, now: Callable[[], float]) -> None:
        self.statistics = statistics
        self.fingerprint = zlib.crc32(statistics.model_dump_json().encode())
        """Of the histograms: counts of workers that compare with others do not add up."""
        self.drift = ModelDrift(0, {})
        self._measure = measure
        self._slot_s = window_s / NUM_SLOTS
        self._now = now
        self._next_at = -math.inf
        self._offset = 0
        self._samples: deque[tuple[dict[str, Array], dict[str, Array]]] = deque(maxlen=MAX_SAMPLES)
        self._edges = [np.array(feature.edges) for feature in statistics.features]
        self._slots: dict[int, tuple[int, Counts]] = {}

    def offer(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """A batch ran. Its rows are copied, some of them, unless the last sample was just taken."""
        now = self._now()
        if now < self._next_at:
            return
        self._next_at = now + SAMPLE_S
        arrays = (*inputs.values(), *outputs.values())
        num_rows = len(arrays[0])
        row_bytes = sum(array.nbytes for array in arrays) // max(1, num_rows)
        most = min(MAX_ROWS, MAX_SAMPLE_BYTES // max(1, row_bytes))
        if not most:
            return
        step = -(-num_rows // most)
        self._offset = (self._offset + 1) % step
        rows = slice(self._offset, None, step)
        taken = [{name: array[rows].copy() for name, array in tensors.items()} for tensors in (inputs, outputs)]
        self._samples.append((taken[0], taken[1]))

    def count(self) -> None:
        """Count the samples since the last call into the window, and let go of what has left it."""
        slot = int(self._now() // self._slot_s)
        for old in [number for number in self._slots if number <= slot - NUM_SLOTS]:
            del self._slots[old]
        num_rows, counts = self._slots.get(slot, (0, [np.zeros(len(edges) + 1, np.int64) for edges in self._edges]))
        while self._samples:
            inputs, outputs = self._samples.popleft()
            measured = self._measure(inputs, outputs)
            num_rows += max((len(values) for values in measured.values()), default=0)
            for feature, edges, bins in zip(self.statistics.features, self._edges, counts, strict=True):
                if (values := measured.get(feature.name)) is not None:
                    values = values[np.isfinite(values)]
                    bins += np.bincount(np.searchsorted(edges, values), minlength=len(bins))
        if num_rows:
            self._slots[slot] = num_rows, counts

    def totals(self) -> tuple[int, Counts]:
        """The rows of the window, and their counts."""
        num_rows = sum(rows for rows, _ in self._slots.values())
        return num_rows, [
            sum((counts[index] for _, counts in self._slots.values()), np.zeros(len(edges) + 1, np.int64))
            for index, edges in enumerate(self._edges)
        ]

    def set_drift(self, num_rows: int, counts: Counts) -> None:
        """These are the totals of all workers."""
        found: dict[str, FeatureDrift] = {}
        if num_rows >= MIN_ROWS:
            for feature, bins in zip(self.statistics.features, counts, strict=True):
                if (drift := compare(feature, bins)) is not None:
                    found[feature.name] = drift
        self.drift = ModelDrift(num_rows, found)

    def describe(self) -> dict[str, Any]:
        """What `GET /models/{name}` says of it."""
        return {
            "num_rows": self.drift.num_rows,
            "features": {name: {"psi": round(psi, 4), "ks": round(ks, 4)} for name, (psi, ks) in self.drift.features.items()},
        }


class DriftMonitor:
    """The samplers of this process; with a `directory`, what they count is added up over all workers that share it."""

    def __init__(self, window_s: float, directory: Path | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._window_s = window_s
        self._files = WorkerFiles("drift", directory)
        self._now = now
        # A sampler ends with its model.
        self._samplers: weakref.WeakValueDictionary[tuple[str, str], Sampler] = weakref.WeakValueDictionary()
        self._has_published = False

    def open_sampler(self, name: str, version: str, statistics: Statistics, measure: Measure) -> Sampler:
        """The sampler of a version that is about to be served; whoever runs it holds it."""
        sampler = Sampler(statistics, measure, self._window_s, self._now)
        self._samplers[name, version] = sampler
        return sampler

    async def run(self) -> None:
        """Update regularly, on a thread, until cancelled."""
        while True:
            await asyncio.sleep(UPDATE_S)
            if self._samplers or self._has_published:
                await asyncio.to_thread(self.update)

    def update(self) -> None:
        """Count what was sampled, show it to the other workers, and compare what all of them have."""
        samplers = dict(self._samplers.copy())
        totals: dict[tuple[str, str], tuple[int, Counts]] = {}
        for key, sampler in samplers.items():
            try:
                sampler.count()
            except Exception:
                log.exception("drift cannot be measured", extra={"model": key[0], "version": key[1]})
            totals[key] = sampler.totals()
        self._publish(samplers, totals)
        for entries in self._files.read_others():
            for name, version, fingerprint, num_rows, counts in entries:
                key = name, version
                if key in samplers and samplers[key].fingerprint == fingerprint:
                    rows, own = totals[key]
                    totals[key] = rows + num_rows, [bins + np.array(others) for bins, others in zip(own, counts, strict=True)]
        for key, sampler in samplers.items():
            sampler.set_drift(*totals[key])

    def collect(self) -> dict[tuple[str, str], ModelDrift]:
        """(model, version) → its drift as of the last update. May be called on a thread."""
        return {key: sampler.drift for key, sampler in self._samplers.copy().items()}

    def _publish(self, samplers: Mapping[tuple[str, str], Sampler], totals: Mapping[tuple[str, str], tuple[int, Counts]]) -> None:
        if not self._files.is_shared:
            return
        entries = [
            [*key, samplers[key].fingerprint, rows, [bins.tolist() for bins in counts]] for key, (rows, counts) in totals.items()
        ]
        self._has_published = True
        self._files.write(entries)
