from __future__ import annotations

from service.sequences.shared_eviction import MIN_CANDIDATES, LeastRecent
from service.sequences.store import SequenceKey
from service.sequences.table import Bounds
from tests.fakes import PATIENCE_S
from tests.service.sequences.shared_tables import keep, open_table


def test_of_the_holder_of_most_the_idle_sequence_is_found_that_was_not_used_for_longest() -> None:
    table = open_table(Bounds(1000, 2**20))
    keys = {
        holder: [SequenceKey("toy", str(number), holder).text for number in range(num)] for holder, num in (("a", 2), ("b", 4))
    }
    for key in (*keys["a"], *keys["b"]):
        keep(table, **{key: b"1"})
    keep(table, **{keys["b"][0]: b"2"})  # the next one has now waited longer
    table.enqueue([keys["b"][1]], PATIENCE_S)
    entries = {key: table._entries.find(key)[1] for each in keys.values() for key in each}
    assert LeastRecent(table._arrays, Bounds(6, 2**20)).find() is None, "within the bounds"
    least_recent = LeastRecent(table._arrays, Bounds(5, 2**20))
    assert least_recent.find() == entries[keys["b"][2]]
    assert least_recent.find() == entries[keys["b"][3]]
    table.enqueue([keys["b"][0], *keys["b"][2:]], PATIENCE_S)
    assert least_recent.find() == entries[keys["a"][0]], "of the next holder, where requests have all of the first one's"
    table.enqueue(keys["a"], PATIENCE_S)
    assert least_recent.find() is None, "requests have all"


def test_candidates_that_were_used_since_they_were_found_are_not_ended() -> None:
    table = open_table(Bounds(1000, 2**20))
    keys = [str(number) for number in range(3 * MIN_CANDIDATES)]
    for key in keys:
        keep(table, **{key: b"1"})
    least_recent = LeastRecent(table._arrays, Bounds(1, 2**20))
    entries = [table._entries.find(key)[1] for key in keys]
    assert least_recent.find() == entries[0]
    for key in keys[: 2 * MIN_CANDIDATES]:
        keep(table, **{key: b"2"})
    assert least_recent.find() == entries[2 * MIN_CANDIDATES]
