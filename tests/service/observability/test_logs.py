"""How an event is written."""

from __future__ import annotations

import json
import logging
import sys

from service.context import CURRENT, RequestContext
from service.observability.logs import AddFacts, AddRequest, JsonFormatter, TextFormatter


def record(**facts: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "service.x", "levelname": "INFO", "msg": "model is %s", "args": ("ready",)})
    made.created, made.msecs = 1_000_000_000.25, 250.0
    vars(made).update(facts)
    return made


def test_a_text_line_is_the_event_and_its_facts() -> None:
    line = TextFormatter().format(record(model="m", reason='no "file"', empty="", n=3))
    assert line == '2001-09-09T01:46:40.250Z INFO model is ready model=m reason="no \\"file\\"" empty="" n=3'


def test_a_json_line_is_one_object_whose_own_fields_win() -> None:
    line = json.loads(JsonFormatter().format(record(model="m", level="mine", path=object)))
    assert line.pop("path").startswith("<class")
    assert line == {
        "time": "2001-09-09T01:46:40.250Z",
        "level": "info",
        "event": "model is ready",
        "logger": "service.x",
        "model": "m",
    }


def test_an_exception_is_part_of_its_line() -> None:
    try:
        raise ZeroDivisionError("oh")
    except ZeroDivisionError:
        made = record()
        made.exc_info = sys.exc_info()
    assert "ZeroDivisionError: oh" in TextFormatter().format(made)
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert "ZeroDivisionError: oh" in json.loads(line)["exception"]


def test_what_a_process_says_of_itself_stands_in_every_line_and_wins_nothing() -> None:
    made = record(model="m", worker=7)
    assert AddFacts(worker=8, zone="a").filter(made)
    assert TextFormatter().format(made).endswith("INFO model is ready model=m worker=7 zone=a")


TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_a_line_has_the_ids_of_the_request_on_whose_behalf_it_is_written() -> None:
    lines = []
    for request_id in (None, TRACE, "a"):
        context = None if request_id is None else RequestContext(request_id, f"00-{TRACE}-b7ad6b7169203331-00")
        token = CURRENT.set(context)
        line = record()
        assert AddRequest().filter(line)
        lines.append(TextFormatter().format(line).partition("ready")[2])
        CURRENT.reset(token)
    assert lines == ["", f" request_id={TRACE}", f" request_id=a trace_id={TRACE}"]


def test_a_line_about_another_request_keeps_its_id() -> None:
    token = CURRENT.set(RequestContext("a", ""))
    line = record(request_id="b")
    assert AddRequest().filter(line)
    CURRENT.reset(token)
    assert TextFormatter().format(line).endswith(" request_id=b")


HOSTILE = "a\x1b[31mred\r\n2026-01-01T00:00:00.000Z INFO forged\x85\x9b31m\u2028\u202eback\x7f\x00\ud800 ä 日本"


def test_nothing_that_is_logged_begins_a_line_of_its_own_or_reaches_the_terminal() -> None:
    def fail() -> None:
        raise ValueError(HOSTILE)

    try:
        fail()
    except ValueError:
        made = record(reason=HOSTILE, tight=HOSTILE.replace(" ", ""))
        made.msg, made.args = "it says %s", (HOSTILE,)
        made.exc_info = sys.exc_info()
    for formatter in (TextFormatter(), JsonFormatter()):
        text = formatter.format(made)
        assert all(character.isprintable() or character == "\n" for character in text), ascii(text)
        text.encode()  # and it can be written
        assert [line for line in text.split("\n")[1:] if not line.startswith("  ")] == []
        assert "日本" in text
    line = json.loads(JsonFormatter().format(made))
    assert (line["reason"], line["event"]) == (HOSTILE, f"it says {HOSTILE}")
