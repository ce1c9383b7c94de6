from __future__ import annotations

import random

import pytest

from service.sequences.shared_arrays import ALIGNMENT, HEAP_TOP, MAX_CLASSES, TOP
from service.sequences.shared_heap import NoRoomError, StateHeap
from service.sequences.table import Bounds
from tests.service.sequences.shared_tables import bodies_of, expect_consistent, keep, open_arrays, open_table


def test_a_place_that_is_free_again_is_that_of_the_next_state_of_about_its_size() -> None:
    heap = StateHeap(open_arrays(Bounds(100, 2**20)))
    first, second, _ = (heap.allocate(100) for _ in range(3))
    heap.free(first, 100)
    heap.free(second, 128)
    assert heap.allocate(200) not in (first, second)
    assert [heap.allocate(65), heap.allocate(100)] == [second, first]
    assert heap.allocate(100) not in (first, second)


def test_a_full_heap_has_no_room_and_of_too_many_sizes_places_are_free_when_it_is_made_again() -> None:
    arrays = open_arrays(Bounds(100, 2**20))
    heap = StateHeap(arrays)
    for number in range(MAX_CLASSES + 2):
        heap.free(heap.allocate(ALIGNMENT * (number + 1)), ALIGNMENT * (number + 1))
    with pytest.raises(NoRoomError):
        heap.allocate(arrays.heap_bytes)
    arrays.words[TOP] = 1
    arrays.owner[0], arrays.place[0], arrays.size[0] = 1, 640, 100
    heap.rebuild()
    assert arrays.words[HEAP_TOP] == 640 + 128
    assert heap.allocate(100) == 640 + 128


def test_a_state_of_no_bytes_has_a_place_of_its_own() -> None:
    table = open_table()
    keep(table, a=b"", b=b"1" * 100)
    keep(table, a=None)
    assert bodies_of(table, "a", "b") == [None, b"1" * 100]


def test_states_of_other_sizes_find_room_where_smaller_ones_were() -> None:
    bounds = Bounds(100, 100_000)
    table = open_table(bounds)
    draw = random.Random(1)
    expected: dict[str, bytes] = {}
    for number in range(3000):
        key = f"k{draw.randrange(40)}"
        body = bytes([number % 251]) * draw.randrange(60, 2000)
        keep(table, **{key: body})
        expected[key] = body
    assert bodies_of(table, *expected) == [*expected.values()]
    expect_consistent(table, *expected)
