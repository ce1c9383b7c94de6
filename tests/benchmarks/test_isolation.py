"""An answer is the same answer when only the last digits of its numbers differ, and nothing else."""

from __future__ import annotations

import os

import pytest

from benchmarks.client import Seen
from benchmarks.isolation import equals, processor_s, report

EXPECTED = b'{"predictions":[{"mean":[1.5,200.0],"label":"good"}]}'


@pytest.mark.parametrize(
    ("status", "body", "is_right"),
    [
        (200, EXPECTED, True),
        (200, b'{"predictions":[{"mean":[1.50001,200.001],"label":"good"}]}', True),
        (200, b'{"predictions":[{"mean":[1.51,200.0],"label":"good"}]}', False),
        (200, b'{"predictions":[{"mean":[1.5],"label":"good"}]}', False),
        (200, b'{"predictions":[{"mean":[1.5,200.0],"label":"bad"}]}', False),
        (200, b'{"predictions":[{"mean":[1.5,200.0]}]}', False),
        (500, EXPECTED, False),
    ],
)
def test_an_answer_is_the_expected_one_but_for_last_digits(status: int, body: bytes, is_right: bool) -> None:
    assert equals(EXPECTED)(status, body) == is_right


def seen(num_valid: int, latency_s: float, num_wrong: int = 0) -> Seen:
    return Seen({"valid": [latency_s] * num_valid}, num_wrong=num_wrong, wrong=["a line"] * num_wrong, duration_s=1.0)


@pytest.mark.parametrize(
    ("among", "is_fine"),
    [
        (seen(85, 0.01), True),
        (seen(70, 0.01), False),  # fewer than 0.95 of 85
        (seen(85, 0.02), False),  # later than 1.2 times
        (seen(85, 0.01, num_wrong=1), False),
    ],
)
def test_valid_requests_get_their_share_as_soon_and_as_right_as_alone(among: Seen, is_fine: bool) -> None:
    assert report([(seen(100, 0.01), among)]) == is_fine


def test_processor_time_only_grows() -> None:
    before = processor_s(os.getpid())
    sum(range(2_000_000))
    assert processor_s(os.getpid()) >= before > 0
