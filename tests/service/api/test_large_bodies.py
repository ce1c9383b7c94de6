"""Large bodies of any content: refused by count or by place, and read while the event loop goes on."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path

import pytest

from service.api.errors import find_row
from service.api.large_bodies import LargeBodyParser
from service.api.parsing import LARGE_BYTES
from service.errors import InvalidInput, MalformedRequest, PayloadTooLarge, ServiceError
from service.json_pieces import count_values
from service.settings import Settings
from tests.folders import write_forecast_folder
from tests.service.api.test_both_paths import JSON, Connection, request, serving

SETTINGS = Settings()


def filled(unit: bytes, *, head: bytes = b'{"instances": [', tail: bytes = b"]}", size: int = SETTINGS.max_body_bytes) -> bytes:
    """As many units, with commas between them, as fit."""
    num_units = (size - len(head) - len(tail)) // (len(unit) + 1)
    return head + b",".join([unit] * num_units) + tail


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


BODIES: dict[str, Callable[[], tuple[bytes, type[ServiceError]]]] = {
    "empty lists": lambda: (filled(b"[]"), PayloadTooLarge),
    "empty objects": lambda: (filled(b"{}"), PayloadTooLarge),
    "small objects": lambda: (filled(b'{"a":1}'), PayloadTooLarge),
    "nested lists": lambda: (filled(nested(100)), PayloadTooLarge),
    "nested lists and NaN": lambda: (filled(nested(100), tail=b",NaN]}"), PayloadTooLarge),
    "keys": lambda: (b'{"instances": [{%s}]}' % b",".join(b'"%d":1' % number for number in range(150_000)), PayloadTooLarge),
    "numbers and NaN": lambda: (filled(b"1.5", tail=b",NaN]}"), InvalidInput),
    "numbers, cut off": lambda: (filled(b"1.5", tail=b""), MalformedRequest),
    "numbers": lambda: (filled(b"12"), PayloadTooLarge),
    "one open bracket after the other": lambda: (b"[" * 90_000, PayloadTooLarge),
    "strings": lambda: (filled(b'"a"'), PayloadTooLarge),
}


@pytest.mark.parametrize("name", BODIES)
async def test_large_bodies_are_refused_for_what_is_wrong_with_them(name: str) -> None:
    body, expected = BODIES[name]()
    assert LARGE_BYTES < len(body) <= SETTINGS.max_body_bytes
    with pytest.raises(expected) as caught:
        await LargeBodyParser(SETTINGS.max_json_values).parse(body, SETTINGS.max_instances)
    assert len(caught.value.message) < 300
    assert gc.isenabled()


@pytest.mark.parametrize(("value", "found"), [("NaN", "NaN"), ("-Infinity", "Infinity"), ("Infinity", "Infinity")])
async def test_nan_is_named_by_its_place_in_the_text(value: str, found: str) -> None:
    text = '{"instances": ["é NaN", ' + "1.5, " * 20_000
    with pytest.raises(InvalidInput) as caught:
        await LargeBodyParser(10**6).parse(f"{text}{value}]}}".encode(), 10**6)
    place = caught.value.facts["where"]
    assert place == f"character {len(text) + value.startswith('-')}"
    assert (caught.value.reason, caught.value.facts["found"]) == ("nonfinite", found)


async def test_as_many_small_instances_as_are_allowed_fit_the_bounds_of_values_and_bytes() -> None:
    instance = b'{"history": [1.25, 2.5, 3.75, 5, 6, 7, 8, 9, 10, 11, 12], "horizon": 3}'
    body = b'{"instances": [%s]}' % b",".join([instance] * SETTINGS.max_instances)
    assert len(body) <= SETTINGS.max_body_bytes
    parsed = await LargeBodyParser(SETTINGS.max_json_values).parse(body, SETTINGS.max_instances)
    assert len(parsed.instances) == SETTINGS.max_instances


async def test_the_event_loop_turns_while_a_body_is_read() -> None:
    parser = LargeBodyParser(SETTINGS.max_json_values)
    tasks = [asyncio.create_task(parser.parse(filled(b"123.456"), 10**6)) for _ in range(4)]
    num_turns = 0
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        num_turns += 1
    assert num_turns > len(tasks)
    assert {len(task.result().instances) for task in tasks} == {len(tasks[0].result().instances)}


def test_values_are_counted_by_what_they_take_to_read() -> None:
    assert count_values(b"1") == 1
    assert count_values(b"[1,2,3]") == 13
    assert count_values(b'{"a":[1,2],"b":{}}') == 73


@pytest.mark.parametrize("fast_path", [True, False])
def test_a_server_refuses_them_all_at_once_and_goes_on(tmp_path: Path, fast_path: bool) -> None:
    write_forecast_folder(tmp_path)
    sent = [make() for make in BODIES.values()]
    with serving(tmp_path, fast_path=fast_path) as port:
        connections = [Connection(port) for _ in sent]
        for connection, (body, _) in zip(connections, sent, strict=True):
            connection.send(request(body=body))
        for connection, (_, expected) in zip(connections, sent, strict=True):
            answer = connection.receive()
            assert answer is not None
            assert answer.first_line.split()[1] == b"%d" % find_row(expected).status
            connection.send(request(headers=[JSON, "Connection: close"]))
            following = connection.receive()
            assert following is not None
            assert following.first_line == b"HTTP/1.1 200 OK"
            connection.close()
