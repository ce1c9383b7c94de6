"""Responses are equal when only the last digits of their numbers differ; valid requests must keep their share beside others."""

from __future__ import annotations

import pytest

from benchmarks.client import LoadResult
from benchmarks.isolation import equals, report

EXPECTED = b'{"predictions":[{"forecast":[1.5,200.0],"label":"good"}]}'


@pytest.mark.parametrize(
    ("status", "body", "is_expected"),
    [
        (200, EXPECTED, True),
        (200, b'{"predictions":[{"forecast":[1.50001,200.001],"label":"good"}]}', True),
        (200, b'{"predictions":[{"forecast":[1.51,200.0],"label":"good"}]}', False),
        (200, b'{"predictions":[{"forecast":[1.5],"label":"good"}]}', False),
        (200, b'{"predictions":[{"forecast":[1.5,200.0],"label":"bad"}]}', False),
        (200, b'{"predictions":[{"forecast":[1.5,200.0]}]}', False),
        (500, EXPECTED, False),
    ],
)
def test_a_response_is_expected_but_for_the_last_digits(status: int, body: bytes, is_expected: bool) -> None:
    assert equals(EXPECTED)(status, body) == is_expected


def result(num_valid: int, latency_s: float, num_errors: int = 0) -> LoadResult:
    return LoadResult({"valid": [latency_s] * num_valid}, num_errors=num_errors, errors=["a line"] * num_errors, duration_s=1.0)


@pytest.mark.parametrize(
    ("mixed", "passes"),
    [
        (result(85, 0.01), True),
        (result(70, 0.01), False),  # fewer than 0.95 of 85
        (result(85, 0.02), False),  # slower than 1.2 times
        (result(85, 0.01, num_errors=1), False),
    ],
)
def test_valid_requests_keep_their_throughput_latency_and_responses(mixed: LoadResult, passes: bool) -> None:
    assert report([(result(100, 0.01), mixed)]) == passes
