from __future__ import annotations

import pytest

from service.errors import StoreUnavailable
from service.sequences.shared_arrays import NAME_BYTES, NUM_BYTES, NUM_SEQUENCES, TOP
from service.sequences.shared_totals import Holders, Owners, Totals
from service.sequences.state import CHECKSUM_BYTES
from service.sequences.table import Bounds, Owner, Total
from tests.service.sequences.shared_tables import OTHER, OWNER, keep, open_arrays, open_table


def test_numbers_of_owners_and_holders_are_the_same_for_all_processes() -> None:
    arrays = open_arrays(Bounds(100, 2**20))
    here, there = Owners(arrays), Owners(arrays)
    assert [here.number_of(OWNER), there.number_of(OTHER), here.number_of(OTHER), there.number_of(OWNER)] == [0, 1, 1, 0]
    assert [here.at(1), there.at(0)] == [OTHER, OWNER]
    holders = Holders(arrays), Holders(arrays)
    assert [holders[number % 2].number_of(name) for number, name in enumerate(("", "a", "a", "", "b"))] == [0, 1, 1, 0, 2]


def test_a_name_for_which_there_is_no_room_is_refused() -> None:
    owners = Owners(open_arrays(Bounds(100, 2**20)))
    assert owners.number_of(Owner("x" * (NAME_BYTES - 1), 1)) == 0
    with pytest.raises(StoreUnavailable):
        owners.number_of(Owner("x" * NAME_BYTES, 1))


def test_totals_that_are_counted_anew_are_those_that_were_counted_with_each_change() -> None:
    arrays = open_arrays(Bounds(100, 2**20))
    totals, owners = Totals(arrays), Owners(arrays)
    for owner in (OWNER, OTHER):
        owners.number_of(owner)
    Holders(arrays).number_of("a")
    arrays.words[TOP] = 4
    for entry, (owner_number, size) in enumerate(((1, 100), (2, 50), (0, 70), (1, 30))):  # of the third nothing is kept
        arrays.owner[entry], arrays.size[entry] = owner_number, size
        if owner_number:
            totals.add(entry, 1)
    expected = [Total(2, 130 + 2 * CHECKSUM_BYTES), Total(1, 50 + CHECKSUM_BYTES)]
    assert totals.of_owners() == expected
    arrays.owner_count[0] = arrays.holder_bytes[0] = 99  # as a process has left it that was killed
    totals.rebuild()
    assert totals.of_owners() == expected
    assert (arrays.holder_count[0], arrays.holder_bytes[0]) == (3, 180 + 3 * CHECKSUM_BYTES)
    assert (arrays.words[NUM_SEQUENCES], arrays.words[NUM_BYTES]) == (3, 180 + 3 * CHECKSUM_BYTES)


def test_what_is_found_of_a_sequence_counts_as_many_bytes_as_the_totals() -> None:
    table = open_table()
    keep(table, a=b"1" * 100)
    found = table.find("a")
    assert found is not None
    assert found.stored.num_bytes == table.totals()[OWNER].num_bytes
