"""gzip and deflate, both ways, with a bound on what comes out; much of it beside the event loop."""

from __future__ import annotations

import asyncio
import zlib
from typing import Literal

from service.api.errors import UnsupportedMediaType
from service.errors import MalformedRequest, PayloadTooLarge

Coding = Literal["gzip", "deflate"]
CODINGS: tuple[Coding, ...] = ("gzip", "deflate")
# Window sizes of zlib: gzip's format, or the one of RFC 1950, which is what HTTP means by deflate.
_WINDOW: dict[Coding, int] = {"gzip": 31, "deflate": 15}
_RAW_WINDOW = -15
LEVEL = 1
"""The fastest: floating-point numbers hardly get smaller by more effort."""
MIN_BYTES = 1024
"""Smaller answers are sent as they are."""
LARGE_COMPRESSED = 16 * 1024
"""Compressing and decompressing more than this happens on a thread."""


def read_coding(value: bytes) -> Coding | None:
    """The coding that a Content-Encoding names; None for identity. Raises UnsupportedMediaType for any other."""
    name = value.strip().lower()
    for coding in CODINGS:
        if name == coding.encode() or (coding == "gzip" and name == b"x-gzip"):
            return coding
    if name in (b"", b"identity"):
        return None
    found = value.decode("latin-1")[:100]
    # Nixtla's client compresses what is larger than 1 MB, which is about what a body may be here.
    advice = "; Nixtla's client sends smaller bodies with num_partitions" if name == b"zstd" else ""
    raise UnsupportedMediaType(f'Content-Encoding is "{found}"; accepted are gzip, deflate and identity{advice}', found=found)


def choose_coding(accept: bytes) -> Coding | None:
    """The coding of an answer by the Accept-Encoding of its request: the one with the highest weight, gzip of two equal ones."""
    weights: dict[Coding, float] = {}
    for part in accept.decode("latin-1").lower().split(","):
        name, _, parameter = part.partition(";")
        for coding in CODINGS:
            if name.strip() == coding:
                weights[coding] = _weight(parameter)
    best = max(CODINGS, key=lambda coding: weights.get(coding, 0.0))
    return best if weights.get(best, 0.0) > 0 else None


def decompress(body: bytes, coding: Coding, max_bytes: int) -> bytes:
    """What a compressed body holds. Raises MalformedRequest, and PayloadTooLarge before more than `max_bytes` are there."""
    windows = (_WINDOW[coding],) if coding == "gzip" else (_WINDOW[coding], _RAW_WINDOW)  # some clients send raw deflate
    for window in windows:
        reader = zlib.decompressobj(window)
        try:
            content = reader.decompress(body, max_bytes + 1)
        except zlib.error:
            continue
        if len(content) > max_bytes:
            raise PayloadTooLarge(
                f"the decompressed body has more than {max_bytes} bytes, SLUICE_MAX_BODY_BYTES",
                limit=max_bytes,
                setting="SLUICE_MAX_BODY_BYTES",
            )
        if not reader.eof or reader.unused_data:
            break
        return content
    raise MalformedRequest(f"the body is no whole {coding} stream")


async def decompress_body(body: bytes, coding: Coding | None, max_bytes: int) -> bytes:
    """As `decompress`, without holding up the event loop; None: the body as it is."""
    if coding is None:
        return body
    if len(body) <= LARGE_COMPRESSED:
        # However little comes, much may come out: what is beyond the bound of one step is left to a thread.
        with_bound = min(max_bytes, 16 * LARGE_COMPRESSED)
        try:
            return decompress(body, coding, with_bound)
        except PayloadTooLarge:
            if with_bound == max_bytes:
                raise
    return await asyncio.to_thread(decompress, body, coding, max_bytes)


def compress(body: bytes, coding: Coding) -> bytes:
    """The body, compressed."""
    writer = zlib.compressobj(LEVEL, wbits=_WINDOW[coding])
    return writer.compress(body) + writer.flush()


def _weight(parameter: str) -> float:
    name, _, value = parameter.strip().partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0
