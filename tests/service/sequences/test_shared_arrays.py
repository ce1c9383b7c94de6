from __future__ import annotations

import os

from service.sequences.shared_arrays import Layout, TableArrays, table_bytes
from service.sequences.shared_memory import SharedMemory
from service.sequences.shared_table import SharedTable
from service.sequences.table import Bounds
from tests.service.sequences.shared_tables import keep


def test_arrays_lie_side_by_side_in_the_memory() -> None:
    bounds = Bounds(100, 2**20)
    end = 0
    for name, place, size in Layout.of(bounds).places():
        assert place >= end, name
        assert place % 4096 == 0
        end = place + size
    assert end == table_bytes(bounds)


def test_all_numbers_of_an_array_are_those_of_its_view() -> None:
    bounds = Bounds(100, 2**20)
    arrays = TableArrays(SharedMemory.create(table_bytes(bounds)), bounds)
    for name in ("chain", "ticket", "process", "expires", "used", "holder", "owner", "place", "size", "owner_count"):
        getattr(arrays, name)[3] = 7
        assert arrays.numbers(name).tolist()[:5] == [0, 0, 0, 7, 0]
        arrays.numbers(name, 4)[2] = 2**63
        assert getattr(arrays, name)[2] == 2**63


def test_memory_is_taken_by_what_is_written_alone() -> None:
    bounds = Bounds(10**9, 2**34)
    memory = SharedMemory.create(table_bytes(bounds))
    table = SharedTable(memory, bounds)
    keep(table, a=b"1" * 1000)
    assert table_bytes(bounds) > 2**34
    taken = os.stat(memory._path).st_blocks * 512
    assert taken < 2**20
