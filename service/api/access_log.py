"""The hook of the access log: what one request was, and what became of it, as one entry.

Knows neither the form of a line nor where it is written.
"""

from __future__ import annotations

from collections.abc import Callable

from service.api.access.addresses import ClientAddresses
from service.api.access.control import CALLER
from service.api.request import Headers, HttpRequest
from service.context import StageName
from service.errors import Outcome

Entry = dict[str, object]
"""Field → value, in the order in which they are written. What is not known of a request is left out."""

_STAGES: dict[StageName, str] = {
    "parse": "parse_us",
    "encode": "encode_us",
    "queue": "queue_us",
    "run": "run_us",
    "decode": "decode_us",
    "write": "write_us",
}
_OUTCOMES: dict[int, Outcome] = {
    401: "rejected",
    403: "rejected",
    429: "rejected",
    499: "cancelled",
    503: "rejected",
    504: "timeout",
}


class AccessLog:
    """Hands the entry of each request that is over to `write`."""

    def __init__(self, write: Callable[[Entry], None], addresses: ClientAddresses, time_text: Callable[[], str]) -> None:
        """`time_text` gives the time that it is now."""
        self._write = write
        self._time_text = time_text
        self._addresses = addresses

    def before(self, request: HttpRequest) -> None:
        """Nothing."""

    def after(self, request: HttpRequest, headers: Headers) -> None:
        """Nothing."""

    def finished(self, request: HttpRequest) -> None:
        """Write the entry."""
        context = request.context
        if context is None:
            return
        entry: Entry = {
            "time": self._time_text(),
            "request_id": context.request_id,
            "trace_id": context.trace_id,
            "client": self._addresses.locate(request),
            "method": request.method,
            "path": request.path,
            "status": request.status,
            "outcome": outcome_of_status(request.status),
            "bytes_in": request.request_bytes,
            "bytes_out": request.response_bytes,
            "duration_us": int(1e6 * request.duration_s),
        }
        if CALLER in request.state:
            entry["key"] = request.state[CALLER]
        if request.num_instances:
            entry["rows"] = request.num_instances
        timing = context.timing
        if timing is not None:
            if timing.model is not None:
                entry["model"], entry["version"] = timing.model, timing.version
            for name, seconds in timing.seconds.items():
                entry[_STAGES[name]] = int(1e6 * seconds)
        self._write(entry)


def outcome_of_status(status: int) -> Outcome:
    """How a request with this answer ended, in the words of the metrics."""
    if status < 400:
        return "ok"
    return _OUTCOMES.get(status) or ("invalid" if status < 500 else "error")
