"""Lines that no value can forge, written in order by a thread; those that nobody reads are dropped and counted."""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Iterator
from typing import Literal

import pytest

from service.observability.access_log import CHUNK_BYTES, AccessLogWriter, Times, clean, json_line, take_chunk, text_line
from tests.serving import wait_until

NOW = "2026-01-31T12:00:00.123Z"
HOSTILE = [
    "a\nforged=1",
    "a\r\n2026-01-01T00:00:00.000Z status=200",
    "a b=c",
    'a" status=200 x="',
    "a\\",
    "\\x41",
    "\x1b[2J\x1b[1;31mred",
    "\x00\x07\x08\x7f",
    "\x85\x9b31m",
    "a\u2028b\u2029c",
    "\u202eabc\u200b",
    "é\U0001f600",
    "\ud800",
    "x" * 100_000,
    "\n" * 100_000,
    "",
    "=",
    '","status":200,"x":"',
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda text: ascii(text)[:30])
def test_a_value_of_json_stays_within_its_field_in_printable_ascii(hostile: str) -> None:
    line = json_line({"time": NOW, "path": hostile, "status": 404}).decode()
    assert re.fullmatch(r"[ -~]*\n", line)
    assert len(line) < 4096
    assert json.loads(line) == {"time": NOW, "path": clean(hostile), "status": 404}


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda text: ascii(text)[:30])
def test_a_value_of_text_stays_within_its_word_in_printable_ascii(hostile: str) -> None:
    line = text_line({"time": NOW, "path": hostile, "status": 404}).decode()
    assert re.fullmatch(r"[ -~]*\n", line)
    assert len(line) < 4096
    found = re.fullmatch(rf'time={NOW} path=("[^"]*"|[^ "=]+) status=404\n', line)
    assert found
    assert found[1].strip('"') == clean(hostile)


def test_ordinary_lines_are_as_they_are() -> None:
    entry = {"path": "/predict", "status": 200, "run_us": 1250}
    assert text_line(entry) == b"path=/predict status=200 run_us=1250\n"
    assert json.loads(json_line(entry)) == entry


def test_what_is_escaped_can_be_told_from_what_was_sent() -> None:
    assert clean("\n") == "\\n"
    assert clean("\\n") == "\\\\n"


def test_times_are_written_to_the_millisecond() -> None:
    moments = iter([1_000_000_000.25, 1_000_000_000.999, 1_000_000_001.0])
    times = Times(lambda: next(moments))
    assert [times.text() for _ in range(3)] == [
        "2001-09-09T01:46:40.250Z",
        "2001-09-09T01:46:40.999Z",
        "2001-09-09T01:46:41.000Z",
    ]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("is_blocking", [True, False])
def test_every_line_is_written_in_order_before_the_end(
    pipe: tuple[int, int], form: Literal["text", "json"], is_blocking: bool
) -> None:
    reader, target = pipe
    os.set_blocking(target, is_blocking)
    dropped: list[int] = []
    writer = AccessLogWriter(form, dropped.append, descriptor=target)
    writer.start()
    for number in range(300):
        writer.put({"number": number})
    writer.stop(30)
    lines = os.read(reader, 1 << 20).decode().splitlines()
    pattern = re.compile(r"number=(\d+)" if form == "text" else r'"number":(\d+)')
    assert [int(pattern.findall(line)[0]) for line in lines] == list(range(300))
    assert not dropped


def test_a_pipe_that_nobody_reads_costs_lines_and_no_time(pipe: tuple[int, int]) -> None:
    reader, target = pipe
    dropped: list[int] = []
    writer = AccessLogWriter("text", dropped.append, descriptor=target, max_lines=100)
    writer.start()
    num_put = 0
    while not dropped:  # put returns, whatever becomes of the thread
        writer.put({"filler": "x" * 200, "number": num_put})
        num_put += 1
    writer.put({"number": num_put})
    assert sum(dropped) >= 2
    received = b""

    def read_all() -> bool:
        nonlocal received
        received += os.read(reader, 1 << 16)
        return received.count(b"\n") == num_put + 1 - sum(dropped)

    wait_until(read_all, "what was not dropped is written")
    writer.stop(30)


def test_lines_that_cannot_be_written_are_counted() -> None:
    reader, end = os.pipe()
    os.close(reader)
    dropped: list[int] = []
    writer = AccessLogWriter("text", dropped.append, descriptor=end)
    writer.start()
    writer.put({"number": 1})

    def is_counted() -> bool:
        writer.put({"number": 2})
        return sum(dropped) >= 2

    wait_until(is_counted, "the drops are counted")
    writer.stop(30)
    os.close(end)


def test_what_is_written_at_once_is_whole_lines_that_a_pipe_takes_whole() -> None:
    waiting = deque(b"x" * size + b"\n" for size in (200, 300, 1000, 4000, 90, 3000, 2000))
    chunks = []
    while waiting:
        chunks.append(take_chunk(waiting))
    assert [(len(chunk), num_lines) for chunk, num_lines in chunks] == [(1503, 3), (4092, 2), (3001, 1), (2001, 1)]
    assert all(chunk.endswith(b"\n") and len(chunk) <= CHUNK_BYTES for chunk, _ in chunks)
