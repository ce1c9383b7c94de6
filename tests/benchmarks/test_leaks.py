"""Memory does not grow, in a bounded part of `make leaks`; the whole takes minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.leaks import ALLOWED_GROWTH, FIRST_LOADS, Sample, growth, reload, soak
from benchmarks.memory import Memory
from benchmarks.traffic import FORECAST, SENTIMENT

MODELS = Path(__file__).parent.parent.parent / "models"


def test_growth_compares_idle_resident_memory() -> None:
    before = Sample(1, Memory(900, 0), Memory(60, 40))
    after = Sample(2, Memory(100, 0), Memory(67, 40))
    assert growth(before, after) == pytest.approx(0.07)


@pytest.mark.slow
def test_memory_after_ten_thousand_requests_is_that_after_one_thousand() -> None:
    first, last = soak(MODELS, (1_000, 10_000), connections=64)
    assert growth(first, last) <= ALLOWED_GROWTH


@pytest.mark.slow
@pytest.mark.parametrize("name", [FORECAST, SENTIMENT])
def test_unloading_a_model_frees_its_memory(name: str) -> None:
    samples = reload(MODELS / name / "1", 50)
    assert len(samples) == 50
    assert growth(samples[FIRST_LOADS - 1], samples[-1]) <= ALLOWED_GROWTH
