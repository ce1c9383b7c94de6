"""Which sequence of a shared table ends when there are too many: of the holder of most, the one that was not used for longest."""

from __future__ import annotations

from collections import deque

import numpy as np

from service.sequences.shared_arrays import NUM_BYTES, NUM_HOLDERS, NUM_SEQUENCES, TableArrays
from service.sequences.table import Bounds

MIN_CANDIDATES = 64
"""So many of the sequences that were not used for longest are found at once."""


class LeastRecent:
    """Looks for entries and changes none. What it remembers is of this process alone, and is looked at again before it counts."""

    def __init__(self, arrays: TableArrays, bounds: Bounds) -> None:
        self._arrays, self._words = arrays, arrays.words
        self._max_sequences, self._max_bytes = bounds.max_sequences, bounds.max_bytes
        self._candidates: dict[int, deque[tuple[int, int]]] = {}  # by holder: when they were used, and their entries

    def find(self) -> int | None:
        """The entry to end next. None within the bounds, and where requests have all that is beyond them."""
        words = self._words
        if words[NUM_BYTES] > self._max_bytes:
            name = "holder_bytes"
        elif words[NUM_SEQUENCES] > self._max_sequences:
            name = "holder_count"
        else:
            return None
        totals = self._arrays.numbers(name, words[NUM_HOLDERS])
        most = int(totals.argmax())
        entry = self._find_of(most)
        if entry is not None:
            return entry
        # Requests have all of that holder's. The others are put in order only then: there may be thousands.
        others = [holder for holder in np.argsort(totals)[::-1].tolist() if holder != most and totals[holder]]
        return next((entry for entry in map(self._find_of, others) if entry is not None), None)

    def _find_of(self, holder: int) -> int | None:
        """The entry of a holder that nobody has and that was not used for longest."""
        arrays = self._arrays
        candidates = self._candidates.setdefault(holder, deque())
        for is_new in (False, True):
            if is_new:
                candidates.extend(self._find_candidates(holder))
            while candidates:
                used, entry = candidates.popleft()
                # What was found earlier is right as long as it is as it was: all others were used later.
                is_idle = arrays.owner[entry] and not arrays.ticket[entry]
                if is_idle and arrays.used[entry] == used and arrays.holder[entry] == holder:
                    return entry
        return None

    def _find_candidates(self, holder: int) -> list[tuple[int, int]]:
        owner, ticket, holders, times = (self._arrays.numbers_of_entries(name) for name in ("owner", "ticket", "holder", "used"))
        idle = np.flatnonzero((owner > 0) & (ticket == 0) & (holders == holder))
        used = times[idle]
        num = max(MIN_CANDIDATES, len(idle) // 64)
        if num < len(idle):
            chosen = np.argpartition(used, num)[:num]
            idle, used = idle[chosen], used[chosen]
        order = np.lexsort((idle, used))
        return list(zip(used[order].tolist(), idle[order].tolist(), strict=True))
