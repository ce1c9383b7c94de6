"""What is read of messages, and what is none: written by hand, byte by byte."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.models.protobuf import read_fields, read_numbers

# Field 1: the number 300. Field 2: "ab". Field 3: eight bytes. Field 4: four bytes. Field 1 again: 5. Field 2 again: "".
MESSAGE = b"\x08\xac\x02" + b"\x12\x02ab" + b"\x19" + bytes(8) + b"\x25" + bytes(4) + b"\x08\x05" + b"\x12\x00"
READERS: list[Callable[[memoryview, int], object]] = [
    lambda message, wanted: list(read_fields(message, wanted)),
    lambda message, wanted: list(read_numbers(message, wanted)),
]


def test_the_values_of_a_field_are_found_by_its_number_and_kind() -> None:
    message = memoryview(MESSAGE)
    assert [bytes(value) for value in read_fields(message, 2)] == [b"ab", b""]
    assert list(read_numbers(message, 1)) == [300, 5]
    for wanted in (1, 3, 4, 5):
        assert list(read_fields(message, wanted)) == []
    for wanted in (2, 3, 4, 5):
        assert list(read_numbers(message, wanted)) == []


@pytest.mark.parametrize("read", READERS, ids=["fields", "numbers"])
@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"\x12\x05ab", id="longer than its message"),
        pytest.param(b"\x19" + bytes(7), id="seven bytes of eight"),
        pytest.param(b"\x25" + bytes(3), id="three bytes of four"),
        pytest.param(b"\x0b", id="a kind that is no more used"),
        pytest.param(b"\x08\xac", id="half a number"),
        pytest.param(b"\x08" + b"\xff" * 1_000_000, id="a number of a million bytes"),
    ],
)
def test_what_is_no_message_is_refused(message: bytes, read: Callable[[memoryview, int], object]) -> None:
    with pytest.raises((ValueError, IndexError)):
        read(memoryview(message), 1)
