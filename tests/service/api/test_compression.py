"""Compressed bodies: both codings, both ways, and a bound on what comes out of them."""

from __future__ import annotations

import gzip
import zlib

import pytest

from service.api.compression import Coding, choose_coding, compress, decompress, read_coding
from service.api.errors import UnsupportedMediaType
from service.errors import MalformedRequest, PayloadTooLarge

CONTENT = b'{"instances": [1, 2, 3]}' * 100


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_what_was_compressed_is_read_back(coding: Coding) -> None:
    compressed = compress(CONTENT, coding)
    assert len(compressed) < len(CONTENT)
    assert decompress(compressed, coding, len(CONTENT)) == CONTENT


def test_deflate_is_read_with_and_without_its_header() -> None:
    raw = zlib.compressobj(wbits=-15)
    assert decompress(raw.compress(CONTENT) + raw.flush(), "deflate", 10_000) == CONTENT


def test_a_bomb_is_refused_before_it_is_out() -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    with pytest.raises(PayloadTooLarge) as caught:
        decompress(bomb, "gzip", 1000)
    assert caught.value.facts["limit"] == 1000


@pytest.mark.parametrize(
    "body", [b"", b"no gzip", gzip.compress(CONTENT)[:-4], gzip.compress(CONTENT) + b"x"], ids=["empty", "text", "cut", "more"]
)
def test_what_is_no_whole_stream_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedRequest, match="no whole gzip stream"):
        decompress(body, "gzip", 10_000)


def test_another_coding_is_refused() -> None:
    assert (read_coding(b"GZIP"), read_coding(b"identity"), read_coding(b"")) == ("gzip", None, None)
    with pytest.raises(UnsupportedMediaType, match="accepted are gzip"):
        read_coding(b"br")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (b"", None),
        (b"br", None),
        (b"gzip", "gzip"),
        (b"deflate, gzip", "gzip"),
        (b"gzip;q=0.1, deflate;q=0.5", "deflate"),
        (b"gzip;q=0", None),
        (b"gzip;q=oops", None),
    ],
)
def test_the_coding_of_an_answer_is_the_one_that_weighs_most(accept: bytes, expected: str | None) -> None:
    assert choose_coding(accept) == expected
