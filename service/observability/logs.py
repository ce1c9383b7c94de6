"""How an event is written: one line, with its facts as fields, which nothing in the facts can break up or colour.

Facts are given as `extra`: `log.info("model is ready", extra={"model": name})`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Literal

from service.context import CURRENT

# Control characters of both sets, what ends a line, and what turns the direction of text: terminals and readers of logs act on
# them.
_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ESCAPES = {code: f"\\u{code:04x}" for code in _CONTROLS}
# Half of a pair has no UTF-8, and the stream could not write it.
_ESCAPES |= {code: f"\\u{code:04x}" for code in range(0xD800, 0xE000)}
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class TextFormatter(logging.Formatter):
    """For people: `2026-01-31T12:00:00.123Z INFO model is ready model=forecast-hourly`."""

    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {name}={_quoted(value)}" for name, value in _facts(record).items())
        line = escape_controls(f"{_time(record)} {record.levelname} {record.getMessage()}{facts}")
        if not record.exc_info:
            return line
        # Indented, so that no line of an exception looks like an event.
        trace = [f"  {escape_controls(each)}" for each in self.formatException(record.exc_info).split("\n")]
        return "\n".join([line, *trace])


class JsonFormatter(logging.Formatter):
    """For machines: one object per line with `time`, `level`, `event`, `logger`, the facts, and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        line |= {name: value for name, value in _facts(record).items() if name not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # What json.dumps leaves as it is can only stand in a string, where JSON has the same escapes.
        return escape_controls(json.dumps(line, ensure_ascii=False, default=str))


class AddFacts(logging.Filter):
    """Adds the same facts to every line; a line's own come first."""

    def __init__(self, **facts: object) -> None:
        super().__init__()
        self._facts = facts

    def filter(self, record: logging.LogRecord) -> bool:
        vars(record).update({name: value for name, value in self._facts.items() if name not in vars(record)})
        return True


class AddRequest(logging.Filter):
    """Adds the id of the request on whose behalf a line is written, and that of its trace where it came with one."""

    def filter(self, record: logging.LogRecord) -> bool:
        context = CURRENT.get()
        if context is not None and "request_id" not in vars(record):
            vars(record)["request_id"] = context.request_id
            if context.trace_id != context.request_id:
                vars(record)["trace_id"] = context.trace_id
        return True


def set_up_logs(level: str, form: Literal["text", "json"], **facts: object) -> None:
    """Write every logger's lines to stderr in this form, each with these facts; of uvicorn's, warnings and errors only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(AddFacts(**facts))
    handler.addFilter(AddRequest())
    handler.setFormatter(TextFormatter() if form == "text" else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn.error", "uvicorn.asgi", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def escape_controls(text: str) -> str:
    r"""The text with every control character as its escape, such as \u001b."""
    return text if text.isascii() and text.isprintable() else text.translate(_ESCAPES)


def _facts(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _OWN_FIELDS}


def _time(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c.isspace() or c in '"=' for c in text) or not text else text
