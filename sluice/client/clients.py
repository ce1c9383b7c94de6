"""`Client` and `AsyncClient`: they send what `calls.py` decides, and wait. The only file that imports httpx."""

from __future__ import annotations

import asyncio
import functools
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Self

import httpx

from sluice.client.blocking import LoopThread, wait
from sluice.client.calls import Answer, Call, Request, Send, Wait, cut, run_part
from sluice.client.errors import InvalidAnswer, Unavailable
from sluice.client.tables import Table, read_series, read_texts

TIMEOUT_S = 60.0
"""Of a whole call, with all of its parts and waits."""
MAX_AT_ONCE = 4
"""Parts of one call that an AsyncClient has under way: enough to keep a server of a few cores busy."""
MAX_ANSWER_BYTES = 200_000_000
CODINGS = frozenset(("gzip", "deflate", "identity"))
"""Of answers, one at a time: a block that was read becomes a thousand times as large at most. Two make it a million times."""


class Client:
    """A server by its URL. May be used from several threads; close it, or use it in a `with` block.

    Calls with more instances than one request may hold are cut into several. What the server refuses because it is busy, or
    loading, is sent again after the time that it names, connections that fail are opened again, until `timeout_s` is over: then
    `Unavailable`. What it refuses for what it holds raises `InvalidInput`, which names the instance.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout_s: float = TIMEOUT_S, verify: Any = True) -> None:
        """`key` is an API key; `verify` as httpx has it, for a server with a certificate of one's own. Raises ValueError."""
        self._make_calls = functools.partial(AsyncClient, url, key, timeout_s=timeout_s, verify=verify, max_at_once=1)
        self._calls = self._make_calls()
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._end: Callable[[], object] = lambda: None
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; calls of other threads that are under way raise RuntimeError, as those that follow do."""
        with self._lock:
            self._is_closed = True
            thread = self._thread
        self._end()
        if thread is not None and thread.is_running:
            thread.join()

    def forecast(
        self,
        series: Any,
        *,
        model: str | None = None,
        horizon: int | None = None,
        quantiles: Sequence[float] | None = None,
        frequency: str | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """Continue one series or many, and get the same kind back.

        A list of numbers, a list of such lists, or an array gives a prediction, or a list of them, as the server writes it.
        A DataFrame of pandas or polars in the long form (`unique_id`, `ds`, `y`) gives one with `unique_id`, `ds`, `forecast`
        and `q0.1` for each quantile; a Series of pandas, whose index may be times, one with these as its index; a Series of
        polars one without times. NaN, None and null are gaps. Raises ClientError; ValueError for what is no series.
        """
        table = read_series(series)
        request = _forecast_request(table, model, horizon, quantiles, frequency)
        return _write(table, self._run(request, timeout_s))

    def classify(self, texts: Any, *, model: str | None = None, timeout_s: float | None = None) -> Any:
        """Classify texts: a list gives a list of predictions, a Series of pandas or polars a DataFrame. Raises ClientError."""
        table = read_texts(texts)
        return _write(table, self._run(Request("/predict/classify", table.instances, model), timeout_s))

    def predict(
        self,
        model: str,
        rows: Sequence[Any],
        *,
        version: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> list[Any]:
        """The predictions of any model's instances, in their order, as `POST /predict` has them. Raises ClientError."""
        return self._run(Request("/predict", rows, model, version, parameters or {}), timeout_s)

    def _run(self, request: Request, timeout_s: float | None) -> list[Any]:
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the client is closed")
            if self._thread is None or not self._thread.is_running:
                self._open()
            assert self._thread is not None
            future = self._thread.submit(self._calls.run(request, timeout_s))
        try:
            return wait(future)
        except CancelledError:
            raise RuntimeError("the client is closed") from None

    def _open(self) -> None:
        """Start a thread for the calls, and in a process that was forked another set of connections."""
        if self._thread is not None:
            self._calls = self._make_calls()
        self._thread = LoopThread()
        self._end = weakref.finalize(self, _end, self._thread, self._calls)


class AsyncClient:
    """`Client` for asyncio, with several parts of a call under way at once; close it with `aclose`, or use it in `async with`."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        verify: Any = True,
        max_at_once: int = MAX_AT_ONCE,
    ) -> None:
        """`max_at_once` parts of a call are under way at most. Raises ValueError."""
        self._timeout_s = timeout_s
        self._max_at_once = max_at_once
        self._http = httpx.AsyncClient(base_url=_base_url(url), headers=_headers(key), verify=verify)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def forecast(
        self,
        series: Any,
        *,
        model: str | None = None,
        horizon: int | None = None,
        quantiles: Sequence[float] | None = None,
        frequency: str | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """As `Client.forecast`."""
        table = read_series(series)
        request = _forecast_request(table, model, horizon, quantiles, frequency)
        return _write(table, await self.run(request, timeout_s))

    async def classify(self, texts: Any, *, model: str | None = None, timeout_s: float | None = None) -> Any:
        """As `Client.classify`."""
        table = read_texts(texts)
        return _write(table, await self.run(Request("/predict/classify", table.instances, model), timeout_s))

    async def predict(
        self,
        model: str,
        rows: Sequence[Any],
        *,
        version: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> list[Any]:
        """As `Client.predict`."""
        return await self.run(Request("/predict", rows, model, version, parameters or {}), timeout_s)

    async def run(self, request: Request, timeout_s: float | None = None) -> list[Any]:
        """The predictions of a request, whatever its instances were made from. Raises ClientError."""
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        free = asyncio.Semaphore(self._max_at_once)

        async def drive(call: Call) -> list[Any]:
            async with free:
                return await self._drive(call, deadline)

        tasks = [asyncio.ensure_future(drive(run_part(request, part, random.random()))) for part in cut(request)]
        try:
            return [prediction for found in await asyncio.gather(*tasks) for prediction in found]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _drive(self, call: Call, deadline: float) -> list[Any]:
        answer: Answer | None = None
        why: Unavailable | None = None
        while True:
            try:
                step = call.send(answer)
            except StopIteration as stop:
                predictions: list[Any] = stop.value
                return predictions
            if isinstance(step, Wait):
                why = _last_answer(step.why, why)
                _expect_time(step, deadline, why)
                await asyncio.sleep(step.seconds)
                answer = None
            else:
                answer = await self._post(step, deadline, why)

    async def _post(self, step: Send, deadline: float, why: Unavailable | None) -> Answer:
        timeout_s = _time_left(deadline, why)
        content = bytearray()
        has_head = False
        try:
            # The timeout of httpx is that of each read; this one ends a head or a body that comes byte by byte, and a compressed
            # body of which nothing can be unpacked.
            async with (
                asyncio.timeout(timeout_s),
                self._http.stream("POST", step.path, content=step.body, timeout=timeout_s) as response,
            ):
                has_head = True
                _expect_known_coding(response.headers.get("content-encoding", "identity"))
                async for block in response.aiter_bytes():
                    content += block
                    _expect_bounded(content, deadline, why)
                return Answer(response.status_code, bytes(content), response.headers.get("retry-after"))
        except TimeoutError:
            if has_head:
                raise why or _too_late() from None
            return _no_answer(httpx.ReadTimeout("its head did not end"))
        except httpx.DecodingError as exc:
            raise _unreadable(exc) from exc
        except httpx.TransportError as exc:
            return _no_answer(exc)


def _end(thread: LoopThread, calls: AsyncClient) -> None:
    """Close the connections of a client that is closed, or that nobody has any more."""
    if thread.is_running:
        thread.stop(calls.aclose())


def _write(table: Table, predictions: list[Any]) -> Any:
    """What the caller gets. Raises InvalidAnswer for predictions that are none of this kind of request."""
    try:
        return table.write(predictions)
    except (AttributeError, LookupError, TypeError, ValueError) as exc:
        raise InvalidAnswer(f"the answer's predictions cannot be read: {type(exc).__name__}: {exc}") from exc


def _expect_known_coding(coding: str) -> None:
    """Raise InvalidAnswer for an answer that is compressed several times, or in a way that it was not asked for."""
    if coding.strip().lower() not in CODINGS:
        raise InvalidAnswer(f"the answer is compressed, and cannot be unpacked: it is {coding[:100]!r}")


def _unreadable(exc: httpx.DecodingError) -> InvalidAnswer:
    return InvalidAnswer(f"the answer is compressed, and cannot be unpacked: {exc}")


def _base_url(url: str) -> str:
    parsed = httpx.URL(url)
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"expected a URL such as http://localhost:8000, got {url!r}")
    return url


def _forecast_request(
    table: Table, model: str | None, horizon: int | None, quantiles: Sequence[float] | None, frequency: str | None
) -> Request:
    parameters = {"horizon": horizon, "quantiles": None if quantiles is None else list(quantiles), "frequency": frequency}
    given = {name: value for name, value in parameters.items() if value is not None}
    return Request("/predict/forecast", table.instances, model, None, given, table.names)


def _headers(key: str | None) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "Accept-Encoding": "gzip, deflate"}
    return headers if key is None else headers | {"Authorization": f"Bearer {key}"}


def _last_answer(now: Unavailable, before: Unavailable | None) -> Unavailable:
    """The reason that says most: what a server answered last, rather than that it was not reached in the moment that was left."""
    return before if before is not None and before.status is not None and now.status is None else now


def _time_left(deadline: float, why: Unavailable | None) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise why or _too_late()
    return left


def _too_late() -> Unavailable:
    return Unavailable("there was no answer before the deadline")


def _expect_time(step: Wait, deadline: float, why: Unavailable) -> None:
    """Raise why there is no answer yet, where the wait would last beyond the deadline."""
    if time.monotonic() + step.seconds >= deadline:
        raise why


def _expect_bounded(content: bytearray, deadline: float, why: Unavailable | None) -> None:
    """Raise Unavailable for an answer that comes too slowly, byte by byte, or never ends."""
    _time_left(deadline, why)
    if len(content) > MAX_ANSWER_BYTES:
        raise Unavailable(f"the answer has more than {MAX_ANSWER_BYTES} bytes")


def _no_answer(exc: httpx.TransportError) -> Answer:
    why = "the server did not answer in time" if isinstance(exc, httpx.TimeoutException) else "the server cannot be reached"
    return Answer(0, f"{why}: {exc or type(exc).__name__}".encode())
