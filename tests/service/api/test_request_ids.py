"""Which ids of a request are taken, and what the ids are like that are made."""

from __future__ import annotations

import multiprocessing
import re

import pytest

from service.api.request import Headers
from service.api.request_ids import MAX_ID_BYTES, MAX_TRACESTATE_BYTES, IdSource, add_ids, identify, new_context
from service.context import RequestContext

MADE = re.compile(r"[0-9a-f]{32}")
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def of(**headers: str | bytes) -> RequestContext:
    values = {name: value if isinstance(value, bytes) else value.encode() for name, value in headers.items()}
    return identify([(name.replace("_", "-").encode(), value) for name, value in values.items()])


@pytest.mark.parametrize(
    "given", ["a", "A-1_b.c~d", "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66", "q+/w==", "x" * MAX_ID_BYTES]
)
def test_a_well_formed_request_id_is_taken(given: str) -> None:
    assert of(x_request_id=given).request_id == given


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b" ",
        b"a b",
        b"a\nb",
        b"a\r\n b",
        b"a\x00",
        b"a\x1b[31m",
        b"\xc3\xa9",
        b"\xff",
        b'a"',
        b"a,b",
        b"{a}",
        b"a%0ab",
        b"x" * (MAX_ID_BYTES + 1),
        b"x" * 1_000_000,
    ],
    ids=lambda given: repr(given[:20]),
)
def test_in_place_of_a_malformed_request_id_one_is_made(given: bytes) -> None:
    assert MADE.fullmatch(of(x_request_id=given).request_id)


def test_of_two_request_ids_neither_is_taken() -> None:
    assert MADE.fullmatch(identify([(b"x-request-id", b"a"), (b"x-request-id", b"a")]).request_id)


@pytest.mark.parametrize(
    ("given", "is_sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-ff", True),
        (f"01-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-00-what-comes-later", False),
    ],
)
def test_a_well_formed_trace_is_continued(given: str, is_sampled: bool) -> None:
    context = of(traceparent=given)
    assert (context.is_continued, context.trace_id, context.span_id, context.is_sampled) == (True, TRACE, SPAN, is_sampled)
    assert context.traceparent.startswith("00-")
    assert MADE.fullmatch(context.request_id)
    assert context.request_id != context.trace_id


@pytest.mark.parametrize(
    "given",
    [
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01 ",
        f"00-{TRACE}-{SPAN}-01\n",
        f"01-{TRACE}-{SPAN}-01more",
        f"01-{TRACE}-{SPAN}-01-{'x' * 1_000_000}",
        f"0x-{TRACE}-{SPAN}-01",
        f"00-{TRACE[:-1]}é-{SPAN}-01",
    ],
    ids=lambda given: repr(given[:60]),
)
def test_in_place_of_a_malformed_trace_one_is_made(given: str) -> None:
    context = of(traceparent=given, tracestate="a=1")
    assert not context.is_continued
    assert not context.is_sampled
    assert context.trace_id == context.request_id
    assert context.tracestate is None


def test_of_two_traces_neither_is_continued() -> None:
    given = f"00-{TRACE}-{SPAN}-01".encode()
    assert not identify([(b"traceparent", given), (b"traceparent", given)]).is_continued


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ([b"a=1"], "a=1"),
        ([b"a=1, b=2,,", b"\tc@d=3 4"], "a=1,b=2,c@d=3 4"),
        ([], None),
        ([b""], None),
        ([b"a"], None),
        ([b"A=1"], None),
        ([b"a=1=2"], None),
        ([b"a=\xc3\xa9"], None),
        ([b"a=1\r\nb: 2"], None),
        ([b"a=1", b"x" * MAX_TRACESTATE_BYTES], None),
        ([b",".join(b"k%d=1" % n for n in range(33))], None),
    ],
)
def test_the_state_of_a_trace_is_taken_whole_or_not_at_all(given: list[bytes], taken: str | None) -> None:
    headers = [(b"traceparent", f"00-{TRACE}-{SPAN}-01".encode()), *((b"tracestate", value) for value in given)]
    assert identify(headers).tracestate == taken


def test_ids_that_are_made_differ_and_are_spread_evenly() -> None:
    made = [new_context().request_id for _ in range(4000)]
    assert len(set(made)) == len(made)
    # As a sampler that keeps a tenth sees them: by the lower 64 bits.
    assert sum(int(each[16:], 16) < 2**64 // 10 for each in made) == pytest.approx(400, abs=20)


def test_a_process_that_is_forked_makes_ids_of_its_own() -> None:
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(new_context().request_id))
    child.start()
    made = queue.get()
    child.join()
    assert made[:16] != new_context().request_id[:16]
    assert IdSource().make()[:16] != made[:16]


def test_an_answer_carries_the_ids_and_the_state_that_came() -> None:
    headers: Headers = []
    add_ids(of(traceparent=f"00-{TRACE}-{SPAN}-01", tracestate="a=1", x_request_id="b"), headers)
    assert headers == [
        (b"x-request-id", b"b"),
        (b"traceparent", f"00-{TRACE}-{SPAN}-01".encode()),
        (b"tracestate", b"a=1"),
    ]
