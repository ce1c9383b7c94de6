"""How often the metrics are rendered, whatever the scrapers do."""

from __future__ import annotations

import asyncio
import threading

import pytest

from service.observability.scraping import Scrape, ScrapeCache

PATIENCE_S = 30


class CountingMetrics:
    """Counts its renderings, each of which may be held up."""

    def __init__(self) -> None:
        self.num_flushes = 0
        self.num_renderings = 0
        self.threads: set[int] = set()
        self.may_finish = threading.Event()
        self.may_finish.set()
        self.error: Exception | None = None

    def flush(self) -> None:
        self.num_flushes += 1

    def content_type(self, accept: str) -> str:
        return "open" if "openmetrics" in accept else "text"

    def encode(self, accept: str) -> Scrape:
        self.threads.add(threading.get_ident())
        self.num_renderings += 1
        number = self.num_renderings
        assert self.may_finish.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        return b"%d" % number, self.content_type(accept)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_scrapes_within_a_second_share_one_rendering_off_the_event_loop() -> None:
    metrics, clock = CountingMetrics(), Clock()
    cache = ScrapeCache(metrics, clock)
    assert [await cache.render("") for _ in range(50)] == [(b"1", "text")] * 50
    clock.now += 0.99
    assert await cache.render("*/*") == (b"1", "text")
    clock.now += 0.01
    assert await cache.render("") == (b"2", "text")
    assert (metrics.num_renderings, metrics.num_flushes) == (2, 2)
    assert threading.get_ident() not in metrics.threads


async def test_two_scrapers_in_a_loop_render_once_per_second() -> None:
    metrics, clock = CountingMetrics(), Clock()
    cache = ScrapeCache(metrics, clock)

    async def scrape_often() -> None:
        for _ in range(500):
            await cache.render("")
            clock.now += 0.01

    await asyncio.gather(scrape_often(), scrape_often())
    assert metrics.num_renderings == pytest.approx(10, abs=1)  # 1,000 scrapes in 10 seconds


async def test_each_form_is_rendered_for_itself_and_no_more_forms_are_kept_than_there_are() -> None:
    metrics = CountingMetrics()
    cache = ScrapeCache(metrics, Clock())
    accepts = [f"text/plain;q=0.{number}" for number in range(100)] + ["application/openmetrics-text"] * 2
    assert {content_type for _, content_type in [await cache.render(accept) for accept in accepts]} == {"text", "open"}
    assert metrics.num_renderings == 2


async def test_scrapes_that_come_while_it_is_rendered_wait_for_it_even_if_the_first_client_leaves() -> None:
    metrics, clock = CountingMetrics(), Clock()
    metrics.may_finish.clear()
    cache = ScrapeCache(metrics, clock)
    first, second = (asyncio.create_task(cache.render("")) for _ in range(2))
    await asyncio.sleep(0)
    clock.now += 5
    third = asyncio.create_task(cache.render(""))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    metrics.may_finish.set()
    assert [await second, await third] == [(b"1", "text")] * 2


async def test_a_rendering_that_failed_is_not_kept() -> None:
    metrics = CountingMetrics()
    metrics.error = OSError("a file of a worker was removed")
    cache = ScrapeCache(metrics, Clock())
    with pytest.raises(OSError, match="was removed"):
        await cache.render("")
    metrics.error = None
    assert await cache.render("") == (b"2", "text")
