"""A text that is read in pieces gives what it gives at once, or the same error."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import json_pieces
from service.errors import PayloadTooLarge
from service.json_pieces import ITEMS_AT_ONCE, PIECE_BYTES, count_values, read_in_pieces, release

NUMBERS = [0.5, -3, 1e-7, None, True, 12345678]
LONG = NUMBERS * 20_000
LISTS: dict[str, Any] = {
    "numbers": {"instances": LONG},
    "a history": {"model": "m", "instances": [{"history": LONG, "horizon": 3}], "parameters": {"quantiles": [0.1, 0.9]}},
    "two histories": {"instances": [{"history": LONG}, {"history": [1, *LONG], "start": "2024-01-01"}]},
    "rows": {"instances": [{"history": [[1.5, 2.5, -3]] * 40_000}]},
    "rows of rows": {"instances": [[[[1, 2], [3, 4]], [[5, 6], [7, 8]]]] * 9_000},
    "many objects": {"instances": [{"history": NUMBERS * 10, "horizon": 2}] * 4_000, "parameters": {"quantiles": [0.5]}},
    "objects, and a long list in one": {"instances": [*[{"history": NUMBERS}] * 9_000, {"history": LONG}]},
    "texts": {"instances": ['He said "1,2,3" [1,2], {3} \\', "é😀"] * 6_000},
    "texts of numbers": {"instances": ["[" + "1,2," * 60_000 + "3]"], "parameters": {}},
    "objects in objects": {"instances": [{"a": {"b": 1}, "c": 2}] * 12_000},
    "a list of lists at the top": [[1, 2, 3]] * 40_000,
    "a list of different depths": {"data": [[1, [2]], 3, [[4]]] * 20_000},
    "an empty list beside": {"a": [], "b": LONG, "c": [[]]},
}


def write(value: object, indent: int | None) -> bytes:
    return json.dumps(value, indent=indent, ensure_ascii=False).encode()


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", LISTS)
def test_a_large_text_gives_what_it_gives_at_once(name: str, indent: int | None) -> None:
    text = write(LISTS[name], indent)
    assert len(text) > 2 * PIECE_BYTES
    assert read_in_pieces(text, orjson.loads, lambda: None) == orjson.loads(text)


@pytest.mark.parametrize("name", ["numbers", "a history", "two histories", "rows", "many objects", "texts"])
def test_no_piece_is_much_larger_than_it_may_be(name: str) -> None:
    text = write(LISTS[name], None)
    sizes: list[int] = []

    def read(piece: bytes) -> Any:
        sizes.append(len(piece))
        return orjson.loads(piece)

    num_pauses = []
    read_in_pieces(text, read, lambda: num_pauses.append(1))
    assert max(sizes) < 3 * PIECE_BYTES
    assert len(num_pauses) >= len(text) // (3 * PIECE_BYTES)


HEAD, TAIL = b'{"model": "\xc3\xa9", "instances": [{"history": [', b']}], "parameters": {}}'
FILLED = b"1.5, " * 40_000


@pytest.mark.parametrize(
    "text",
    [
        HEAD + FILLED + b"NaN, " + FILLED + b"2" + TAIL,
        HEAD + FILLED + b"2, Infinity" + TAIL,
        HEAD + FILLED + b", 2" + TAIL,
        HEAD + FILLED + TAIL,
        HEAD + FILLED + b"2",
        HEAD + FILLED + b"2]}",
        HEAD + FILLED + b"2" + TAIL + b"}",
        HEAD.replace(b"model", b'mo"del') + FILLED + b"2" + TAIL,
        b'{"a": "\xff", "b": [' + FILLED + b"2]}",
        b'{"instances": [' + b"[1, 2], " * 30_000 + b"[1, 2]",
        b'{"instances": [' + b'{"a": 1}, ' * 20_000 + b'{"a": NaN}]}',
        b'{"instances": [' + b'"a", ' * 40_000 + b'"]}',
    ],
)
def test_what_is_no_json_is_refused_at_its_place(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".") as at_once:
        orjson.loads(text)
    with pytest.raises(ValueError, match=r".") as in_pieces:
        read_in_pieces(text, orjson.loads, lambda: None)
    places = [getattr(caught.value, "pos", None) for caught in (at_once, in_pieces)]
    assert places[0] == places[1], (at_once.value, in_pieces.value)


def test_a_comma_behind_a_comma_is_refused_however_far_it_is() -> None:
    for space in (0, 10, PIECE_BYTES, 3 * PIECE_BYTES):
        with pytest.raises(ValueError, match=r"comma|expected a JSON value"):
            read_in_pieces(HEAD + FILLED + b" " * space + b", 2" + TAIL, orjson.loads, lambda: None)


def test_a_key_that_is_there_twice_means_its_last_value() -> None:
    text = b'{"history": [' + FILLED + b'2], "history": [1, 2]}'
    assert read_in_pieces(text, orjson.loads, lambda: None) == {"history": [1, 2]}


def test_what_cannot_be_cut_is_bounded() -> None:
    text = b'{"a": "[' + b"1," * 500_000 + b'2]"}'
    with pytest.raises(PayloadTooLarge, match="cannot be read in parts"):
        read_in_pieces(text, orjson.loads, lambda: None)
    assert count_values(text) > json_pieces.MAX_VALUES_AT_ONCE


ODD = ['"', "\\", "],", "},", '",', "[", "{", "é"]
SMALL = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(ODD) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
)


@settings(max_examples=40)  # each of 200 KB, read three times
@given(SMALL, st.sampled_from(["instances", "a"]), st.booleans())
def test_whatever_a_text_holds_it_gives_the_same(value: object, key: str, in_object: bool) -> None:
    item = {"x": value} if in_object else value
    text = write({"b": value, key: [item] * (200_000 // (len(write(item, None)) + 1))}, None)
    try:
        content = read_in_pieces(text, orjson.loads, lambda: None)
    except PayloadTooLarge:
        return
    assert content == orjson.loads(text)


def test_long_lists_are_emptied_in_pieces() -> None:
    history = [0.5] * (3 * ITEMS_AT_ONCE)
    value = [{"history": history}, ([1] * (2 * ITEMS_AT_ONCE + 1),), "text"]
    num_pauses = []
    release(value, lambda: num_pauses.append(1))
    assert len(history) == ITEMS_AT_ONCE
    assert len(num_pauses) == 4
