"""Values are handed to prometheus_client in bulk where its inside is known, and one by one where it is not."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping

import pytest
from prometheus_client import CollectorRegistry, Histogram

from service.observability.pending import AddCounts, PendingSeries
from service.observability.prometheus import find_add_counts, is_tested

BOUNDS = (0.1, 1.0)
VALUES = (0.05, 0.1, 0.5, 1.0, 7.0, 0.5)


def samples(add_counts: AddCounts | None) -> Mapping[str, float]:
    """What a scrape says of the values, which came in two flushes."""
    registry = CollectorRegistry()
    histogram = Histogram("seconds", "", ("model",), buckets=BOUNDS, registry=registry)
    series = PendingSeries(BOUNDS, add_counts)
    pending = series.add_histogram(histogram, ("m",))
    for part in (VALUES[:2], VALUES[2:]):
        for value in part:
            pending.observe(value)
        series.flush()
    (family,) = registry.collect()
    return {sample.name + sample.labels.get("le", ""): sample.value for sample in family.samples if "created" not in sample.name}


def test_values_in_bulk_are_those_one_by_one() -> None:
    in_bulk = find_add_counts()
    assert in_bulk is not None
    expected = {"seconds_bucket0.1": 2, "seconds_bucket1.0": 5, "seconds_bucket+Inf": 6, "seconds_count": 6}
    assert samples(in_bulk) == samples(None) == {**expected, "seconds_sum": pytest.approx(sum(VALUES))}


def test_the_installed_client_is_one_that_was_tested() -> None:
    assert is_tested(importlib.metadata.version("prometheus-client"))


@pytest.mark.parametrize("version", ["0.20.0", "0.27.0", "1.0", "0.x"])
def test_of_an_unknown_version_nothing_private_is_used_and_a_warning_says_so(
    version: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert not is_tested(version)
    with caplog.at_level(logging.WARNING):
        assert find_add_counts(version) is None
    assert "one by one" in caplog.text
