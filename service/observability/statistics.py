"""What the metrics say of each model version, as sums since the start: the statistics of the Open Inference Protocol. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

NS_PER_S = 1_000_000_000


class Sample(Protocol):
    """One value of a metric."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> Mapping[str, str]: ...

    @property
    def value(self) -> float: ...


class Family(Protocol):
    """A metric with its samples."""

    @property
    def samples(self) -> Sequence[Any]: ...


class _Duration(NamedTuple):
    """How the protocol calls the duration of a stage, and which histogram measures it."""

    name: str
    metric: str


_DURATIONS = (
    _Duration("success", "sluice_inference_request_duration_seconds"),
    _Duration("queue", "sluice_inference_queue_duration_seconds"),
    _Duration("compute_input", "sluice_inference_preprocess_duration_seconds"),
    _Duration("compute_infer", "sluice_inference_compute_duration_seconds"),
    _Duration("compute_output", "sluice_inference_postprocess_duration_seconds"),
)
_COUNTS = {
    "sluice_inference_rows_total": "inference_count",
    "sluice_batch_executions_total": "execution_count",
    "sluice_model_last_inference_timestamp_seconds": "last_inference",
}
_REQUESTS = "sluice_inference_requests_total"


def sum_statistics(families: Iterable[Family]) -> dict[tuple[str, str], dict[str, Any]]:
    """(model, version) → its statistics, from the samples of all workers.

    Counts are of rows where the protocol counts inferences, of requests in `success` and `fail`, of batches in `compute_infer`;
    times are in nanoseconds. The time of requests that failed is within that of `success`, whose count they are not in.
    """
    sums: dict[tuple[str, str], dict[str, float]] = {}
    for family in families:
        for sample in family.samples:
            model = sample.labels.get("model"), sample.labels.get("version")
            if model[0] is None or model[1] is None or model[0].startswith("_"):
                continue
            of_model = sums.setdefault((model[0], model[1]), {})
            name = sample.name
            if name == _REQUESTS:
                name = f"{_REQUESTS}:{'success' if sample.labels['outcome'] == 'ok' else 'fail'}"
            of_model[name] = of_model.get(name, 0.0) + sample.value
    return {model: _describe(*model, of_model) for model, of_model in sums.items()}


def _describe(name: str, version: str, sums: Mapping[str, float]) -> dict[str, Any]:
    def duration(count: float, seconds: float) -> dict[str, int]:
        return {"count": int(count), "ns": int(seconds * NS_PER_S)}

    stages = {stage: duration(sums.get(f"{metric}_count", 0.0), sums.get(f"{metric}_sum", 0.0)) for stage, metric in _DURATIONS}
    stages["success"]["count"] = int(sums.get(f"{_REQUESTS}:success", 0.0))
    stages["fail"] = duration(sums.get(f"{_REQUESTS}:fail", 0.0), 0.0)
    stages |= {"cache_hit": duration(0, 0), "cache_miss": duration(0, 0)}
    counts = {field: int(sums.get(metric, 0.0)) for metric, field in _COUNTS.items()}
    counts["last_inference"] = int(sums.get("sluice_model_last_inference_timestamp_seconds", 0.0) * 1000)
    return {
        "name": name,
        "version": version,
        **counts,
        "inference_stats": stages,
        "response_stats": {},
        "batch_stats": [],
        "memory_usage": [],
    }
