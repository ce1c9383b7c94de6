"""What access costs a request: keys, rates and CORS, hook by hook, in this process without sockets.

    python -m benchmarks.access

Each line is the best of several turns: the hooks' three calls for a request to predict with six headers and its key, less what
no hook costs. A request on the fast path takes 60 to 100 µs of processor time beside it (docs/explanation/performance.md).
"""

from __future__ import annotations

import multiprocessing
import tempfile
import timeit
from collections.abc import Sequence
from pathlib import Path

from service.api.access.keys import describe_entry, new_key
from service.api.access.wiring import AccessOptions, make_rate_tables, open_access
from service.api.request import AsgiRequest, Headers, HttpRequest
from service.errors import RateScope

NUM_KEYS = 100
# Never reached: what is measured is a request that passes.
RATE = "900000000/s"
NUM_REQUESTS, TURNS, REPEATS = 1000, 20, 9
HEADERS: Headers = [
    (b"host", b"localhost:8000"),
    (b"user-agent", b"python-httpx/0.28.1"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"content-type", b"application/json"),
    (b"content-length", b"2048"),
]


class SilentObserver:
    """Counts nothing."""

    def rate_limited(self, scope: RateScope, key: str) -> None:
        raise AssertionError("the rate was reached")


async def _receive() -> dict[str, object]:
    raise AssertionError("the body was read")


def request(*headers: tuple[bytes, bytes]) -> HttpRequest:
    """The head of a request to predict."""
    scope = {"method": "POST", "path": "/predict", "headers": [*HEADERS, *headers], "client": ("203.0.113.9", 4711)}
    made = AsgiRequest(scope, _receive)
    made.route = "/predict"
    return made


def cost_us(options: AccessOptions, *headers: tuple[bytes, bytes]) -> float:
    """Microseconds of one request; rates are counted in tables that workers share."""
    hooks = open_access(options, SilentObserver(), make_rate_tables(options, multiprocessing.get_context("fork"))).hooks
    requests = [request(*headers) for _ in range(NUM_REQUESTS)]

    def run() -> None:
        for each in requests:
            added: Headers = []
            for hook in hooks:
                hook.before(each)
            for hook in hooks:
                hook.after(each, added)
            for hook in hooks:
                hook.finished(each)

    return min(timeit.repeat(run, number=TURNS, repeat=REPEATS)) / (TURNS * NUM_REQUESTS) * 1e6


def costs(keys_file: Path, key: str) -> Sequence[tuple[str, float]]:
    """What is switched on → its microseconds."""
    credential = (b"authorization", b"Bearer " + key.encode())
    nothing = cost_us(AccessOptions())
    cases = {
        f"{NUM_KEYS} keys": (AccessOptions(keys_file=keys_file), [credential]),
        f"{NUM_KEYS} keys with rates": (AccessOptions(keys_file=keys_file, rate_limit=RATE), [credential]),
        "rates by address": (AccessOptions(rate_limit=RATE), []),
        "rates by address behind a trusted proxy": (
            AccessOptions(rate_limit=RATE, trusted_proxies="203.0.113.0/24"),
            [(b"x-forwarded-for", b"198.51.100.7")],
        ),
        "CORS": (AccessOptions(cors_origins="https://app.example.com"), [(b"origin", b"https://app.example.com")]),
    }
    return [(name, cost_us(options, *headers) - nothing) for name, (options, headers) in cases.items()]


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.toml"
        keys = [new_key() for _ in range(NUM_KEYS)]
        file.write_text("".join(describe_entry(key, f"name-{number}", scopes=["predict"]) for number, key in enumerate(keys)))
        for name, found_us in costs(file, keys[0]):
            print(f"{found_us:6.2f} µs  {name}")


if __name__ == "__main__":
    main()
