from __future__ import annotations

import random

import pytest

from service.errors import StoreUnavailable
from service.sequences.shared_entries import Entries
from service.sequences.table import Bounds
from tests.service.sequences.shared_tables import open_arrays


def test_whatever_is_added_and_forgotten_each_key_has_its_entry_also_after_they_are_made_again() -> None:
    arrays = open_arrays(Bounds(100, 2**20))
    here, there = Entries(arrays), Entries(arrays)
    draw = random.Random(3)
    expected: dict[str, int] = {}
    for number in range(2000):
        key = f"k{draw.randrange(60)}"
        entries = draw.choice((here, there))
        digest, found = entries.find(key)
        assert found == expected.get(key)
        if found is None:
            expected[key] = entries.add(digest, 0)
            arrays.owner[expected[key]] = 1  # as if a state were kept
        elif draw.random() < 0.5:
            arrays.owner[found] = 0
            entries.forget(expected.pop(key))
        if number % 200 == 0:
            there.rebuild()
    assert len({*expected.values()}) == len(expected)
    assert max(expected.values()) < 60, "those that are free are used first"


def test_of_too_many_entries_the_next_is_refused_until_one_is_forgotten() -> None:
    arrays = open_arrays(Bounds(1, 64))
    entries = Entries(arrays)
    for number in range(arrays.num_entries):
        entries.add(number.to_bytes(16, "little"), 0)
    with pytest.raises(StoreUnavailable):
        entries.add(b"1" * 16, 0)
    entries.forget(5)
    assert entries.add(b"1" * 16, 0) == 5
