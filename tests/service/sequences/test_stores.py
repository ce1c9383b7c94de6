"""The same rules for every store."""

from __future__ import annotations

import asyncio
import random
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis

from service.errors import DeadlineExceeded, StartError, StoreUnavailable
from service.runtime.tensors import TensorSpec
from service.sequences.layout import StateLayout
from service.sequences.redis_store import RedisStore
from service.sequences.shared import SharedStore
from service.sequences.store import SequenceKey, SequenceStore, read_block
from service.sequences.table import Bounds, Owner
from tests.fakes import PATIENCE_S
from tests.service.sequences.processes import begin_another_process, kill
from tests.service.sequences.stores import KINDS, RedisServer, Stores, keep, make_state, open_stores, redis_server, take

OWNER = Owner("toy", 1)
SMALL = [TensorSpec(name, "FP32", ("batch", 3)) for name in ("h0", "c0")]
"""The tensors of `make_state`."""


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest) -> str:
    """Of an empty Redis, where the store is one."""
    if kind != "redis":
        return ""
    server: RedisServer = request.getfixturevalue("redis")
    server.flush()
    return server.url


@pytest.fixture
async def stores(kind: str, url: str) -> AsyncIterator[Stores]:
    async with open_stores(kind, redis_url=url) as stores:
        yield stores


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def key(id: str) -> SequenceKey:
    return SequenceKey("toy", id)


async def wait_until(is_so: Any, what: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert is_so(), what


async def begin_checkout(client: SequenceStore, *ids: str) -> asyncio.Task[Any]:
    """A checkout that has its places in the queues, granted or not."""
    task = asyncio.create_task(client.checkout([key(each) for each in ids], PATIENCE_S))
    await asyncio.sleep(0)
    await client.find(key("none"))  # what a client sends arrives in order
    return task


async def test_a_state_is_what_any_client_finds_bit_for_bit(stores: Stores) -> None:
    here, there = stores.open_client(), stores.open_client()
    state = make_state(7)
    assert await take(here, "a") == [None]
    await keep(here, "a", state)
    (found,) = await take(there, "a")
    assert found is not None
    assert found.to_bytes() == state.to_bytes()
    inspected = await there.find(key("a"))
    assert inspected is not None
    assert (inspected.state, inspected.is_busy) == (state, False)
    assert 0 <= inspected.idle_s < PATIENCE_S


async def test_ids_of_different_models_and_of_any_characters_are_different_sequences(stores: Stores) -> None:
    client = stores.open_client()
    ids = ["7", "07", "a b", "é/..\x7f", "x" * 128, "*", "{a}", "null"]
    for number, id in enumerate(ids):
        await keep(client, id, make_state(number))
    assert await take(client, *ids, model="other") == [None] * len(ids)
    assert await take(client, *ids) == [make_state(number) for number in range(len(ids))]


async def test_what_is_ended_or_only_released_leaves_nothing_new(stores: Stores) -> None:
    client = stores.open_client()
    await keep(client, "a", make_state(1))
    client.release(await client.checkout([key("a")], PATIENCE_S))
    assert await take(client, "a") == [make_state(1)]
    await keep(client, "a", None)
    assert await take(client, "a") == [None]
    assert await client.find(key("a")) is None


async def test_requests_of_all_clients_get_a_sequence_in_the_order_in_which_they_came(stores: Stores) -> None:
    clients = [stores.open_client() for _ in range(3)]
    first = await clients[0].checkout([key("a")], PATIENCE_S)
    order: list[int] = []
    waiting = [await begin_checkout(clients[number % 3], "a") for number in range(6)]

    async def follow(number: int) -> None:
        checkout = await waiting[number]
        order.append(number)
        assert checkout.states[0] == make_state(len(order))
        found = await clients[number % 3].find(key("a"))
        assert found is not None
        assert found.is_busy
        await clients[number % 3].commit(checkout, [make_state(len(order) + 1)])

    tasks = [asyncio.create_task(follow(number)) for number in range(6)]
    assert order == []
    await clients[0].commit(first, [make_state(1)])
    await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S)
    assert order == list(range(6))


async def test_who_is_cancelled_leaves_the_queue_and_disturbs_nobody(stores: Stores) -> None:
    here, there = stores.open_client(), stores.open_client()
    first = await here.checkout([key("a"), key("b")], PATIENCE_S)
    left, next_one = await begin_checkout(there, "a", "b"), await begin_checkout(here, "b")
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    await here.commit(first, [make_state(1), make_state(2)])
    checkout = await asyncio.wait_for(next_one, PATIENCE_S)
    assert checkout.states == [make_state(2)]
    assert await asyncio.wait_for(take(there, "a"), PATIENCE_S) == [make_state(1)]
    here.release(checkout)


async def test_a_commit_whose_caller_is_gone_is_carried_out_and_disturbs_nobody(stores: Stores) -> None:
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context["message"]))
    client = stores.open_client()
    for steps in (1, 2):
        checkout = await client.checkout([key("a")], PATIENCE_S)
        client.commit(checkout, [make_state(steps)]).cancel()
    assert await take(client, "a") == [make_state(2)]
    assert reported == []


async def test_many_sequences_are_committed_together_and_requests_for_them_do_not_wait_in_a_circle(stores: Stores) -> None:
    here, there = stores.open_client(), stores.open_client()
    ids = [str(number) for number in range(300)]

    async def advance(client: SequenceStore, ids: list[str]) -> None:
        for _ in range(5):
            checkout = await client.checkout([key(id) for id in ids], PATIENCE_S)
            steps = [0 if state is None else state.steps for state in checkout.states]
            await client.commit(checkout, [make_state(each + 1) for each in steps])

    both = asyncio.gather(advance(here, ids), advance(there, ids[::-1]), advance(there, ids[100:200]))
    await asyncio.wait_for(both, PATIENCE_S)
    assert await take(here, *ids) == [make_state(15 if 100 <= number < 200 else 10) for number in range(300)]


@pytest.mark.parametrize("limit", ["sequences", "bytes"])
async def test_of_too_many_the_one_ends_that_was_not_used_for_longest_and_is_counted(kind: str, url: str, limit: str) -> None:
    size = make_state(0).num_bytes
    bounds = Bounds(max_sequences=4) if limit == "sequences" else Bounds(max_bytes=4 * size + 1)
    async with open_stores(kind, bounds, url) as stores:
        client = stores.open_client()
        for id in "abcd":
            await keep(client, id, make_state(1))
            await asyncio.sleep(0.002)  # Redis keeps the time of use in milliseconds
        await keep(client, "a", make_state(2))
        held = await client.checkout([key("b")], PATIENCE_S)
        await keep(client, "e", make_state(1))
        there = [id for id in "abcde" if await client.find(key(id)) is not None]
        assert there == ["a", "b", "d", "e"], "neither one that was used since nor one that a request has"
        assert stores.observer.evictions == [(OWNER, "lru")]
        await client.commit(held, [make_state(2)])
        assert await take(client, "b") == [make_state(2)]


@pytest.mark.parametrize("limit", ["sequences", "bytes"])
async def test_a_holder_of_many_pushes_out_none_of_one_who_has_fewer(kind: str, url: str, limit: str) -> None:
    size = make_state(0).num_bytes
    bounds = Bounds(max_sequences=5) if limit == "sequences" else Bounds(max_bytes=5 * size + 1)
    async with open_stores(kind, bounds, url) as stores:
        client = stores.open_client()

        async def put(holder: str, id: str) -> None:
            checkout = await client.checkout([SequenceKey("toy", id, holder)], PATIENCE_S)
            await client.commit(checkout, [make_state(1)])
            await asyncio.sleep(0.002)  # Redis keeps the time of use in milliseconds

        async def kept(holder: str) -> str:
            return "".join([id for id in "abcdefgh" if await client.find(SequenceKey("toy", id, holder)) is not None])

        for id in "ab":
            await put("quiet", id)
        for id in "abcdefgh":
            await put("greedy", id)
        assert (await kept("quiet"), await kept("greedy")) == ("ab", "fgh")
        held = await client.checkout([SequenceKey("toy", "f", "greedy")], PATIENCE_S)
        await put("", "a")
        assert (await kept("quiet"), await kept("greedy"), await kept("")) == ("ab", "fh", "a")
        await client.commit(held, [None])
        assert stores.observer.evictions == [(OWNER, "lru")] * 6


async def test_in_redis_nothing_is_left_of_holders_whose_sequences_have_ended(redis: RedisServer) -> None:
    redis.flush()
    async with open_stores("redis", Bounds(), redis.url) as stores:
        client = stores.open_client()
        for change in (make_state(1), None):
            for holder in ("", "a", "b"):
                await client.commit(await client.checkout([SequenceKey("toy", "1", holder)], PATIENCE_S), [change])
        with Redis.from_url(redis.url) as direct:
            assert set(direct.keys()) == {b"sluice:count", b"sluice:bytes"}


async def test_sequences_that_an_older_version_kept_in_redis_end_when_there_are_too_many(redis: RedisServer) -> None:
    redis.flush()
    async with open_stores("redis", Bounds(), redis.url) as stores:
        for id in "ab":
            await keep(stores.open_client(), id, make_state(1))
    with Redis.from_url(redis.url) as direct:
        assert direct.delete("sluice:used:", "sluice:held:count", "sluice:held:bytes") == 3  # which it did not have
    async with open_stores("redis", Bounds(max_sequences=2), redis.url) as stores:
        client = stores.open_client()
        await keep(client, "c", make_state(1))
        await keep(client, "d", make_state(1))
        assert stores.observer.evictions == [(OWNER, "lru")] * 2
        assert sum([await client.find(key(id)) is not None for id in "abcd"]) == 2


async def test_a_sequence_that_is_not_used_ends_and_is_counted(kind: str, url: str) -> None:
    async with open_stores(kind, Bounds(ttl_s=0.05), url) as stores:
        client = stores.open_client()
        running = asyncio.create_task(client.run())
        checkouts = [await client.checkout([key("a")], PATIENCE_S), await client.checkout([key("b")], PATIENCE_S)]
        for checkout in checkouts:
            await client.commit(checkout, [make_state(1)])
        await wait_until(lambda: stores.observer.evictions == [(OWNER, "idle")] * 2, "both have ended")
        assert await client.find(key("a")) is None
        assert await take(client, "a", "b") == [None, None]
        await wait_until(lambda: OWNER in stores.observer.totals, "they were counted")
        await wait_until(lambda: stores.observer.totals[OWNER].num_sequences == 0, "none is left")
        running.cancel()
        await asyncio.wait((running,))


async def test_the_totals_are_of_all_clients(stores: Stores) -> None:
    here, there = stores.open_client(), stores.open_client()
    for number, client in enumerate((here, there)):
        await keep(client, str(number), make_state(number))
    running = asyncio.create_task(here.run())
    size = 2 * make_state(1).num_bytes
    await wait_until(lambda: OWNER in stores.observer.totals, "they were counted")
    assert (stores.observer.totals[OWNER].num_sequences, stores.observer.totals[OWNER].num_bytes) == (2, size)
    running.cancel()
    await asyncio.wait((running,))


async def test_what_a_request_has_that_ended_without_a_word_is_free_after_its_time(kind: str, url: str) -> None:
    async with open_stores(kind, redis_url=url, margin_s=0.0) as stores:
        here, there = stores.open_client(), stores.open_client()
        running = asyncio.create_task(here.run())
        await keep(here, "a", make_state(1))
        lost = await here.checkout([key("a")], 0.05)
        assert await asyncio.wait_for(take(there, "a"), PATIENCE_S) == [make_state(1)]
        with pytest.raises(DeadlineExceeded):
            await here.commit(lost, [make_state(9)])
        assert await take(there, "a") == [make_state(1)], "what came too late was not kept"
        running.cancel()
        await asyncio.wait((running,))


async def test_a_request_that_waits_for_longer_than_its_time_is_told(kind: str, url: str) -> None:
    async with open_stores(kind, redis_url=url, margin_s=0.0) as stores:
        here, there = stores.open_client(), stores.open_client()
        running = [asyncio.create_task(each.run()) for each in (here, there)]
        first = await here.checkout([key("a")], PATIENCE_S)
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(there.checkout([key("a"), key("b")], 0.05), PATIENCE_S)
        await here.commit(first, [make_state(1)])
        assert await asyncio.wait_for(take(there, "a", "b"), PATIENCE_S) == [make_state(1), None]
        for each in running:
            each.cancel()
        await asyncio.wait(running)


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_comes_each_step_goes_on_from_the_one_before(stores: Stores, seed: int) -> None:
    """Requests of two clients, for one to three of five sequences each; some fail, some are given up at any moment."""
    clients = [stores.open_client(), stores.open_client()]
    draw = random.Random(seed)
    ids = list("abcde")
    num_committed = dict.fromkeys(ids, 0)
    busy: set[str] = set()

    async def step(client: SequenceStore, own: list[str], fate: float) -> None:
        checkout = await client.checkout([key(id) for id in own], PATIENCE_S)
        assert not busy & set(own), "two requests have a sequence"
        busy.update(own)
        try:
            assert [0 if state is None else state.steps for state in checkout.states] == [num_committed[id] for id in own]
            await asyncio.sleep(0)
            if fate < 0.2:
                raise ValueError
        except BaseException:
            busy.difference_update(own)
            client.release(checkout)
            raise
        commit = client.commit(checkout, [make_state(num_committed[id] + 1) for id in own])
        for id in own:
            num_committed[id] += 1
        busy.difference_update(own)
        await asyncio.shield(commit)

    tasks = []
    for number in range(60):
        own = draw.sample(ids, draw.randint(1, 3))
        tasks.append(asyncio.create_task(step(clients[number % 2], own, draw.random())))
        if draw.random() < 0.3:
            await asyncio.sleep(0)
        if draw.random() < 0.2:
            draw.choice(tasks).cancel()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 2 * PATIENCE_S)
    assert {type(result) for result in results} <= {type(None), ValueError, asyncio.CancelledError}
    states = await take(clients[0], *ids)
    assert [0 if state is None else state.steps for state in states] == [num_committed[id] for id in ids]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "shared"])
async def test_of_a_million_sequences_as_many_are_kept_as_the_bounds_allow_and_their_memory_is_that_of_so_many(kind: str) -> None:
    kept, per_request = 100_000, 1000
    layout = StateLayout(make_state(1).identity, SMALL)
    async with open_stores(kind, Bounds(max_sequences=kept)) as stores:
        client = stores.open_client()
        resident: dict[int, int] = {}
        num_ended = 0
        for first in range(0, 1_000_000, per_request):
            keys = [key(str(number)) for number in range(first, first + per_request)]
            checkout = await client.checkout(keys, PATIENCE_S)
            values = np.full((per_request, 3), first, np.float32)
            await client.commit(checkout, layout.write({"h0": values, "c0": values}, [1] * per_request))
            num_ended += len(stores.observer.evictions)
            stores.observer.evictions.clear()
            resident[first + per_request] = resident_bytes()
        assert num_ended == 1_000_000 - kept
        assert await take(client, "0", str(1_000_000 - kept - 1)) == [None, None]
        assert None not in await take(client, str(1_000_000 - kept), "999999")
        running = asyncio.create_task(client.run())
        await wait_until(lambda: OWNER in stores.observer.totals, "they are counted")
        assert stores.observer.totals[OWNER].num_sequences == kept
        assert stores.observer.totals[OWNER].num_bytes == kept * layout.num_bytes
        running.cancel()
        await asyncio.wait((running,))
    growth = resident[kept] - resident[per_request]
    assert growth < 1500 * kept, "a state of three numbers takes what its key, its place and its body do"
    assert resident[1_000_000] - resident[2 * kept] < growth / 4, "those that have ended take nothing"


# ----------------------------------------------------------------------------------------------- stores that can be gone


async def test_a_process_that_ends_has_nothing_any_more() -> None:
    async with open_stores("shared") as stores:
        here, there = stores.open_client(), stores.open_client()
        await keep(here, "a", make_state(1))
        await here.checkout([key("a")], PATIENCE_S)
        waiting = await begin_checkout(here, "a")
        following = await begin_checkout(there, "a")
        await here.close()
        with pytest.raises(StoreUnavailable):
            await waiting
        assert (await asyncio.wait_for(following, PATIENCE_S)).states == [make_state(1)]


async def test_what_could_not_be_released_is_as_soon_as_the_memory_can_be_had_again() -> None:
    async with open_stores("shared") as stores:
        here, there = stores.open_client(), stores.open_client()
        assert isinstance(here, SharedStore)
        await keep(here, "a", make_state(1))
        checkouts = [await here.checkout([key(id)], PATIENCE_S) for id in ("a", "b")]
        stopped = begin_another_process(lambda: here.table._memory.acquire())
        here.release(checkouts[0])
        with pytest.raises(StoreUnavailable):
            await here.commit(checkouts[1], [make_state(2)])
        kill(stopped)
        running = asyncio.create_task(here.run())
        assert await asyncio.wait_for(take(there, "a", "b"), PATIENCE_S / 2) == [make_state(1), None]
        running.cancel()
        await asyncio.wait((running,))


async def test_redis_that_is_gone_refuses_steps_and_recovers_by_itself(redis: RedisServer) -> None:
    async with open_stores("redis", redis_url=redis.url) as stores:
        client = stores.open_client()
        redis.flush()
        await keep(client, "a", make_state(1))
        checkout = await client.checkout([key("a")], PATIENCE_S)
        redis.kill()
        with pytest.raises(StoreUnavailable):
            await client.commit(checkout, [make_state(2)])
        with pytest.raises(StoreUnavailable):
            await client.checkout([key("a")], PATIENCE_S)
        redis.start()  # empty: it keeps nothing on disk here
        assert await take(client, "a") == [None]
        await keep(client, "a", make_state(1))
        assert await take(client, "a") == [make_state(1)]


async def test_a_commit_whose_answer_of_redis_is_lost_is_carried_out_once(redis: RedisServer) -> None:
    async with open_stores("redis", redis_url=redis.url) as stores:
        client, other = stores.open_client(), stores.open_client()
        redis.flush()
        for state in (make_state(1), None):
            checkout = await client.checkout([key("a")], PATIENCE_S)
            await client.commit(checkout, [state])
            await client.commit(checkout, [state])  # as it is repeated
            assert await take(other, "a") == [state]
        stale = await client.checkout([key("a")], PATIENCE_S)
        client.release(stale)
        await keep(other, "a", make_state(5))
        with pytest.raises(DeadlineExceeded):
            await client.commit(stale, [make_state(2)])
        assert await take(other, "a") == [make_state(5)]


async def test_a_redis_that_does_not_answer_holds_nobody_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # which accepts nothing: the kernel does
        client = RedisStore(f"redis://127.0.0.1:{silent.getsockname()[1]}", Bounds(), timeout_s=0.05)
        with pytest.raises(StoreUnavailable):
            await client.checkout([key("a")], PATIENCE_S)
        await client.close()


def test_what_is_no_url_of_redis_is_refused_at_the_start() -> None:
    with pytest.raises(StartError, match="SLUICE_SEQUENCE_STORE"):
        RedisStore("http://127.0.0.1", Bounds())


def test_a_state_that_cannot_be_read_is_none_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    block = make_state(1).to_bytes()
    assert read_block(block) == make_state(1)
    assert read_block(block[:-1] + bytes([block[-1] ^ 1])) is None
    assert "cannot be read" in caplog.text
    assert np.array_equal(make_state(1).tensors["h0"], np.full(3, 1, np.float32))
