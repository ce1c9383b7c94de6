"""Which entry of a shared table a sequence has, by its key: a hash table of digests, and the entries that are free."""

from __future__ import annotations

import hashlib
import secrets

from service.errors import StoreUnavailable
from service.sequences.shared_arrays import DIGEST_BYTES, FREE, SECRET, TOP, TableArrays

MAX_KNOWN = 100_000
"""Keys whose entries a process remembers."""


class Entries:
    """Keys → entries. One that is added is in use once it has a ticket or an owner, and is to be forgotten when it has neither.

    Crash-safe: buckets, chains and the list of those that are free may be left in any state by a process that is killed;
    `rebuild` makes them again from the entries in use and their digests. A digest is written only while its entry is not in use.
    """

    def __init__(self, arrays: TableArrays) -> None:
        self._arrays, self._bytes, self._words = arrays, arrays.bytes, arrays.words
        self._buckets, self._chain, self._owner, self._ticket = arrays.buckets, arrays.chain, arrays.owner, arrays.ticket
        self._digests = arrays.digests
        self._mask = len(arrays.buckets) - 1
        self._known: dict[str, tuple[bytes, int]] = {}  # digests of keys, and where they were last

    def find(self, key: str) -> tuple[bytes, int | None]:
        """The digest of a key, and its entry."""
        known = self._known.get(key)
        if known is not None:
            digest, entry = known
            start = self._digests + DIGEST_BYTES * entry
            if self._owner[entry] and self._bytes[start : start + DIGEST_BYTES] == digest:
                return digest, entry
        digest = digest_of(self._words, key)
        found = self._find(digest)
        if found is not None:
            if len(self._known) == MAX_KNOWN:
                self._known.clear()
            self._known[key] = digest, found
        return digest, found

    def add(self, digest: bytes, holder: int) -> int:
        """An entry for a key that has none, of which nothing is kept. Raises StoreUnavailable."""
        words = self._words
        if words[FREE]:
            entry = words[FREE] - 1
            words[FREE] = self._chain[entry]
            is_new = False
        elif words[TOP] < self._arrays.num_entries:
            entry, is_new = words[TOP], True
        else:
            raise StoreUnavailable("too many requests have sequences at once")
        start = self._digests + DIGEST_BYTES * entry
        self._bytes[start : start + DIGEST_BYTES] = digest
        self._owner[entry] = self._ticket[entry] = 0
        self._arrays.holder[entry] = holder
        if is_new:
            words[TOP] = entry + 1
        bucket = self._bucket(digest)
        self._chain[entry] = self._buckets[bucket]
        self._buckets[bucket] = entry + 1
        return entry

    def forget(self, entry: int) -> None:
        """Free an entry of which nothing is kept and which nobody has."""
        start = self._digests + DIGEST_BYTES * entry
        bucket = self._bucket(self._bytes[start : start + DIGEST_BYTES])
        following = self._buckets[bucket]
        if following == entry + 1:
            self._buckets[bucket] = self._chain[entry]
        else:
            while self._chain[following - 1] != entry + 1:
                following = self._chain[following - 1]
            self._chain[following - 1] = self._chain[entry]
        self._chain[entry] = self._words[FREE]
        self._words[FREE] = entry + 1

    def rebuild(self) -> None:
        """Make buckets, chains and the list of those that are free again; all other entries are free."""
        arrays, words, chain, buckets = self._arrays, self._words, self._chain, self._buckets
        words[FREE] = 0
        arrays.numbers("buckets")[:] = 0
        is_used = (arrays.numbers_of_entries("owner") > 0) | (arrays.numbers_of_entries("ticket") > 0)
        for entry, is_one in enumerate(is_used.tolist()):
            if is_one:
                start = self._digests + DIGEST_BYTES * entry
                bucket = self._bucket(self._bytes[start : start + DIGEST_BYTES])
                chain[entry], buckets[bucket] = buckets[bucket], entry + 1
            else:
                chain[entry], words[FREE] = words[FREE], entry + 1

    def _bucket(self, digest: bytes) -> int:
        return int.from_bytes(digest[:8], "little") & self._mask

    def _find(self, digest: bytes) -> int | None:
        following = self._buckets[self._bucket(digest)]
        while following:
            entry = following - 1
            start = self._digests + DIGEST_BYTES * entry
            if self._bytes[start : start + DIGEST_BYTES] == digest:
                return entry
            following = self._chain[entry]
        return None


def digest_of(words: memoryview[int], text: str) -> bytes:
    """What stands for a key, or for a holder: clients cannot choose texts whose digests meet, since it is keyed."""
    if not words[SECRET]:
        words[SECRET] = secrets.randbits(63) | 1
    key = words[SECRET].to_bytes(8, "little")
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES, key=key).digest()
