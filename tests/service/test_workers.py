"""When a dead worker is replaced. That it is, is proven with real processes in test_main.py."""

from __future__ import annotations

import pytest

from service.workers import MAX_DELAY_S, YOUNG_S, replacement_delay_s


@pytest.mark.parametrize(
    ("lifetime_s", "previous_s", "delay_s"),
    [
        (YOUNG_S, 0.0, 0.0),
        (3600.0, MAX_DELAY_S, 0.0),
        (1.0, 0.0, 0.5),
        (1.0, 0.5, 1.0),
        (1.0, 4.0, 8.0),
        (1.0, MAX_DELAY_S, MAX_DELAY_S),
    ],
)
def test_who_dies_young_is_replaced_later_and_later(lifetime_s: float, previous_s: float, delay_s: float) -> None:
    assert replacement_delay_s(lifetime_s, previous_s) == delay_s
