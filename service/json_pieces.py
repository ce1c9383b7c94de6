"""Large JSON texts read in pieces, so that other threads run between two of them.

A JSON reader holds the interpreter's lock from the first byte of a text to the last. Long lists are therefore cut at commas: the
rest of the text, with a marker as the first item of such a list, is read by itself, and so is each piece. Where the rest is a
JSON text and each piece in brackets is a list that is not empty, the whole is a JSON text, and its value follows. A wrong cut,
as in a string, makes one of them none; what cannot be cut so is read at once, up to a bound. Which reader reads is an argument.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from service.errors import PayloadTooLarge

PIECE_BYTES = 64 * 1024
"""Of a long list, so much is read by one call: less than 1 ms of numbers."""
MAX_VALUES_AT_ONCE = 400_000
"""Of a text, or of what is left of it, that cannot be cut: some 10 ms."""
# What reading a list, an object or the key of one takes, in numbers: measured as 170 to 240 ns and 500 to 700 ns against 20.
CONTAINER_VALUES = 10
KEY_VALUES = 20

ITEMS_AT_ONCE = 20_000
"""Of a list that is freed."""

Read = Callable[[bytes], Any]
# The distance at which a text is probed for lists of numbers, and how much is looked at there.
_STRIDE, _PROBE = PIECE_BYTES // 2, 64
# What lists of numbers hold, and null, true, false, NaN and Infinity.
_OF_LISTS = b"0123456789+-.eE, \t\r\n[]nultrefasNaIity"
_BOUNDARIES = (b'"', b"{", b"}")
# The beginning of a list of objects or strings, and what is between two of them.
_OPENING = re.compile(rb"\[\s*(?=([{\"]))")
_BETWEEN = {b"{": re.compile(rb"\}\s*,(?=\s*\{)"), b'"': re.compile(rb'"\s*,(?=\s*")')}


class _Cut(NamedTuple):
    """A list that is cut from `start` on, its first item: at the commas `ends`. What is behind the last one stays in the text."""

    start: int
    ends: list[int]

    @property
    def end(self) -> int:
        return self.ends[-1] + 1


def count_values(text: bytes) -> int:
    """How many values a JSON text holds at most, weighted by what they take to read, without reading it.

    What stands in strings is counted too: to leave it out would take longer than to read the text.
    """
    return text.count(b",") + CONTAINER_VALUES * (text.count(b"[") + text.count(b"{")) + KEY_VALUES * text.count(b":") + 1


def read_in_pieces(text: bytes, read: Read, pause: Callable[[], object]) -> Any:
    """What `read` gives for the whole text; `pause` is called between two pieces.

    Raises ValueError as `read` does, with the place in the whole text, and PayloadTooLarge for what would take too long at once.
    """
    return _read_cut(text, list(_cut_numbers(text)), read, pause, lambda rest: _read_items(rest, read, pause))


def release(value: object, pause: Callable[[], object]) -> None:
    """Empty the long lists of a value that is needed no more, in pieces: to free a million numbers takes 10 ms."""
    stack = [value]
    while stack:
        each = stack.pop()
        if type(each) is dict:
            stack.extend(each.values())
        elif isinstance(each, list | tuple):
            if each and not isinstance(each[0], int | float | str | None):
                stack.extend(each)
            while isinstance(each, list) and len(each) > ITEMS_AT_ONCE:
                del each[-ITEMS_AT_ONCE:]
                pause()


def _read_items(text: bytes, read: Read, pause: Callable[[], object]) -> Any:
    """What `read` gives; the first list of objects or strings is read in pieces."""
    opening = _OPENING.search(text) if len(text) > 2 * PIECE_BYTES else None
    ends = _cut(text, opening.end(), len(text), _BETWEEN[opening[1]]) if opening is not None else []
    cuts = [_Cut(opening.end(), ends)] if opening is not None and ends else []
    return _read_cut(text, cuts, read, pause, lambda rest: _read_at_once(rest, read))


def _read_cut(text: bytes, cuts: Sequence[_Cut], read: Read, pause: Callable[[], object], read_rest: Read) -> Any:
    """What `read` gives: the cut lists are read piece by piece, and the rest of the text by `read_rest`."""
    if not cuts:
        return read_rest(text)
    prefix = secrets.token_hex(8)
    markers = [f"{prefix}-{number}" for number in range(len(cuts))]
    rest = _without(text, cuts, markers)
    items, error = _read_lists(text, cuts, read, pause)
    try:
        content = read_rest(rest)
    except ValueError as exc:
        place: int = getattr(exc, "pos", 0)
        before = rest.decode(errors="replace")[: place + len(prefix) + 1]
        if len(items) + (error is not None) < len(cuts) or prefix in before[max(0, place - 1) :]:
            return _read_at_once(text, read)  # a cut is wrong: the list stands in a string, or ends elsewhere
        if error is None or markers[len(items)] not in before:
            raise _error_at(exc, text, _place_in_text(rest, place, cuts, markers)) from None
        raise error from None
    if error is not None:
        raise error
    lists = _find_lists(content, set(markers))
    if len(lists) < len(markers) or len(items) < len(cuts):
        return _read_at_once(text, read)  # a key is there twice, or a list cannot be cut
    for marker, values in zip(markers, items, strict=True):
        lists[marker][:1] = values
    return content


def _read_lists(
    text: bytes, cuts: Sequence[_Cut], read: Read, pause: Callable[[], object]
) -> tuple[list[list[Any]], ValueError | None]:
    """The items of the cut lists, up to the first that has none, and the error in it; None where it is not known to be one."""
    lists: list[list[Any]] = []
    for cut in cuts:
        try:
            items = _read_list(text, cut, read, pause)
        except ValueError as exc:
            return lists, exc
        if items is None:
            break
        lists.append(items)
    return lists, None


def _read_list(text: bytes, cut: _Cut, read: Read, pause: Callable[[], object]) -> list[Any] | None:
    """The items of a list up to its last cut; None where that is none. Raises ValueError."""
    items: list[Any] = []
    start, first, last = cut.start, 0, 0
    while first < len(cut.ends):
        pause()
        piece = text[start : cut.ends[last]]
        try:
            found = _read_at_once(b"[" + piece + b"]", read)
        except ValueError as exc:
            place = max(0, getattr(exc, "pos", 0) - 1)
            read_so_far = piece.decode(errors="replace")[:place].encode()
            if _is_json(b"[" + read_so_far, read):
                return None  # the list ends before the cut
            if len(read_so_far) < len(piece):  # whatever follows: up to there it is the same text
                raise _error_at(exc, text, start + len(read_so_far)) from None
            # It ends within an item: twice as much, so that no piece is read often.
            last += last - first + 1
            if last >= len(cut.ends):
                return None
            continue
        if not found:
            raise _error_at(ValueError("unexpected character, expected a JSON value"), text, cut.ends[last])
        items += found
        start, first = cut.ends[last] + 1, last + 1
        last = first
    return items


def _is_json(text: bytes, read: Read) -> bool:
    with contextlib.suppress(ValueError):
        read(text)
        return True
    return False


def _cut_numbers(text: bytes) -> Iterator[_Cut]:
    """The long lists of numbers, flat or nested, that are seen by looking into the text now and then."""
    place = 0
    for probe in range(_STRIDE, len(text), _STRIDE):
        if probe < place or text[probe : probe + _PROBE].translate(None, _OF_LISTS):
            continue
        start = max(place, *(text.rfind(each, place, probe) for each in _BOUNDARIES))
        stop = min(found if found >= 0 else len(text) for found in (text.find(each, probe) for each in _BOUNDARIES))
        place = stop
        first = text.find(b"[", start, stop) + 1
        if first:
            head = text[first : first + _PROBE]
            depth = head[: len(head) - len(head.lstrip(b"[ \t\r\n"))].count(b"[")
            ends = _cut(text, first, stop, re.compile(rb"(?:\]\s*){%d}," % depth))
            if ends:
                yield _Cut(first, ends)


def _cut(text: bytes, start: int, stop: int, delimiter: re.Pattern[bytes]) -> list[int]:
    """Commas that end a delimiter, PIECE_BYTES apart at least."""
    ends = []
    while stop - start > PIECE_BYTES:
        found = delimiter.search(text, start + PIECE_BYTES, stop)
        if found is None:
            break
        ends.append(found.end() - 1)
        start = found.end()
    return ends


def _read_at_once(text: bytes, read: Read) -> Any:
    found = count_values(text)
    if found > MAX_VALUES_AT_ONCE:
        raise PayloadTooLarge(
            f"the body holds {found} JSON values that cannot be read in parts, as many as its commas, {CONTAINER_VALUES} for "
            f"each list or object and {KEY_VALUES} for each key; at most {MAX_VALUES_AT_ONCE} are",
            found=found,
            limit=MAX_VALUES_AT_ONCE,
        )
    return read(text)


def _without(text: bytes, cuts: Sequence[_Cut], markers: Sequence[str]) -> bytes:
    """The text with a marker in place of the pieces of each list."""
    parts, place = [], 0
    for cut, marker in zip(cuts, markers, strict=True):
        parts += [text[place : cut.start], _write_marker(marker)]
        place = cut.end
    return b"".join([*parts, text[place:]])


def _write_marker(marker: str) -> bytes:
    return b'"%s",' % marker.encode()


def _place_in_text(rest: bytes, place: int, cuts: Sequence[_Cut], markers: Sequence[str]) -> int:
    """The byte of the whole text for a character of what is left without its long lists."""
    at = len(rest.decode(errors="replace")[:place].encode())
    for cut, marker in zip(cuts, markers, strict=True):
        if at >= cut.start:
            at += cut.end - cut.start - len(_write_marker(marker))
    return at


def _error_at(exc: ValueError, text: bytes, place: int) -> json.JSONDecodeError:
    """The same error at a byte of the whole text."""
    message: str = getattr(exc, "msg", str(exc))
    return json.JSONDecodeError(message, text.decode(errors="replace"), len(text[:place].decode(errors="replace")))


def _find_lists(content: object, markers: set[str]) -> dict[str, list[Any]]:
    """The lists whose first item is one of the markers."""
    found: dict[str, list[Any]] = {}
    stack = [content]
    while stack and len(found) < len(markers):
        each = stack.pop()
        if type(each) is dict:
            stack.extend(each.values())
        elif type(each) is list and each:
            if type(each[0]) is str and each[0] in markers:
                found[each[0]] = each
            stack.extend(each)
    return found
