"""How an event is written: one line, with its facts as fields.

Facts are given as `extra`: `log.info("model is ready", extra={"model": name})`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Literal

from service.context import CURRENT

_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class TextFormatter(logging.Formatter):
    """For people: `2026-01-31T12:00:00.123Z INFO model is ready model=forecast-hourly`."""

    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {name}={_quoted(value)}" for name, value in _facts(record).items())
        line = f"{_time(record)} {record.levelname} {record.getMessage()}{facts}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


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
        return json.dumps(line, ensure_ascii=False, default=str)


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


def _facts(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _OWN_FIELDS}


def _time(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c.isspace() or c in '"=' for c in text) or not text else text
