from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.oldest import lower_bounds, oldest_constraints

ROOT = Path(__file__).parents[2]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-").split())
BOUNDS = lower_bounds(["cpu", "train", "docs", "dev"])


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


@pytest.mark.parametrize("name", BOUNDS)
def test_a_direct_dependency_is_pinned_at_its_lower_bound_or_above(name: str) -> None:
    assert numbers(PINS[name.lower()]) >= numbers(BOUNDS[name])


def test_the_oldest_environment_takes_the_lower_bounds_but_the_torch_of_every_environment() -> None:
    found = dict(line.split("==") for line in oldest_constraints(["cpu", "train", "dev"]))
    assert found["torch"] == PINS["torch"] != BOUNDS["torch"]
    assert {name: version for name, version in found.items() if name != "torch"} == {
        name: version for name, version in lower_bounds(["cpu", "train", "dev"]).items() if name != "torch"
    }
