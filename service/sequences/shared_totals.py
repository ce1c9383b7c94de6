"""What a shared table keeps of each version of a model, and of each holder: their numbers, and how many sequences and bytes."""

from __future__ import annotations

import numpy as np

from service.errors import StoreUnavailable
from service.sequences.shared_arrays import (
    DIGEST_BYTES,
    MAX_NAMES,
    NAME_BYTES,
    NUM_BYTES,
    NUM_HOLDERS,
    NUM_OWNERS,
    NUM_SEQUENCES,
    TableArrays,
)
from service.sequences.shared_entries import digest_of
from service.sequences.state import CHECKSUM_BYTES
from service.sequences.table import Owner, Total


class Owners:
    """Versions of models ↔ numbers, for as long as there is the memory.

    A name is there once it is counted, and is written before: of a process that is killed in between nothing is seen.
    """

    def __init__(self, arrays: TableArrays) -> None:
        self._arrays, self._words = arrays, arrays.words
        self._numbers: dict[Owner, int] = {}
        self._owners: list[Owner] = []

    def number_of(self, owner: Owner) -> int:
        """Its number, which it has from now on. Raises StoreUnavailable."""
        number = self._numbers.get(owner)
        if number is None:
            self._read()
            number = self._numbers.get(owner)
        if number is None:
            number, name = self._words[NUM_OWNERS], owner.model.encode()
            if number == MAX_NAMES or len(name) >= NAME_BYTES:
                raise StoreUnavailable("too many versions of models have had sequences")
            start = self._arrays.owner_names + NAME_BYTES * number
            self._arrays.bytes[start : start + 1 + len(name)] = bytes([len(name)]) + name
            self._arrays.owner_version[number] = owner.version
            self._words[NUM_OWNERS] = number + 1
            self._read()
        return number

    def at(self, number: int) -> Owner:
        if number >= len(self._owners):
            self._read()
        return self._owners[number]

    def _read(self) -> None:
        for number in range(len(self._owners), self._words[NUM_OWNERS]):
            start = self._arrays.owner_names + NAME_BYTES * number
            name = self._arrays.bytes[start + 1 : start + 1 + self._arrays.bytes[start]].decode()
            owner = Owner(name, self._arrays.owner_version[number])
            self._owners.append(owner)
            self._numbers[owner] = number


class Holders:
    """Holders → numbers, for as long as there is the memory; their digests stand for them. Killed in between: as `Owners`."""

    def __init__(self, arrays: TableArrays) -> None:
        self._arrays, self._words = arrays, arrays.words
        self._numbers: dict[str, int] = {}

    def number_of(self, holder: str) -> int:
        """Its number, which it has from now on. Raises StoreUnavailable."""
        number = self._numbers.get(holder)
        if number is None:
            digest, num = digest_of(self._words, holder), self._words[NUM_HOLDERS]
            start, end = self._arrays.holder_digests, self._arrays.holder_digests + DIGEST_BYTES * num
            known = self._arrays.bytes[start:end]
            number = next(
                (
                    place // DIGEST_BYTES
                    for place in range(0, len(known), DIGEST_BYTES)
                    if known[place : place + DIGEST_BYTES] == digest
                ),
                num,
            )
            if number == num:
                if num == MAX_NAMES:
                    raise StoreUnavailable("too many holders have had sequences")
                self._arrays.bytes[end : end + DIGEST_BYTES] = digest
                self._words[NUM_HOLDERS] = num + 1
            self._numbers[holder] = number
        return number


class Totals:
    """How many sequences are kept, and how many bytes: of all, of each owner and of each holder.

    Counted with each change, which is no one write: after a process was killed `rebuild` counts anew.
    """

    def __init__(self, arrays: TableArrays) -> None:
        self._arrays, self._words = arrays, arrays.words

    def add(self, entry: int, sign: int) -> None:
        """Add what is kept of an entry, 1, or take it away, -1."""
        arrays, words = self._arrays, self._words
        size = sign * (arrays.size[entry] + CHECKSUM_BYTES)
        owner, holder = arrays.owner[entry] - 1, arrays.holder[entry]
        words[NUM_SEQUENCES] += sign
        words[NUM_BYTES] += size
        arrays.owner_count[owner] += sign
        arrays.owner_bytes[owner] += size
        arrays.holder_count[holder] += sign
        arrays.holder_bytes[holder] += size

    def of_owners(self) -> list[Total]:
        """By their numbers."""
        counts, sizes = self._arrays.owner_count, self._arrays.owner_bytes
        return [Total(counts[number], sizes[number]) for number in range(self._words[NUM_OWNERS])]

    def rebuild(self) -> None:
        """Count what is kept of all entries."""
        arrays, words = self._arrays, self._words
        owners = arrays.numbers_of_entries("owner").astype(np.int64)
        kept = np.flatnonzero(owners)
        sizes = arrays.numbers_of_entries("size")[kept] + CHECKSUM_BYTES
        holders = arrays.numbers_of_entries("holder")[kept].astype(np.int64)
        for name, numbers, num in (("owner", owners[kept] - 1, words[NUM_OWNERS]), ("holder", holders, words[NUM_HOLDERS])):
            arrays.numbers(f"{name}_count", num)[:] = np.bincount(numbers, minlength=num)
            arrays.numbers(f"{name}_bytes", num)[:] = np.bincount(numbers, sizes, num)
        words[NUM_SEQUENCES], words[NUM_BYTES] = len(kept), int(sizes.sum())
