"""What looks at the folders lead to, and that all members serve a version or none: with members that are values."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from service.errors import FolderError, LoadFailed, ModelNotFound, Overloaded
from service.models.controller import (
    MAX_PENDING,
    Controller,
    Failure,
    Found,
    MemberLost,
    Plan,
    Snapshot,
    State,
    plan_changes,
)
from service.models.scanning import VersionPins
from service.models.snapshots import fingerprint
from service.models.target import Key, Target, Withdrawal, read_target, write_target
from tests.folders import edit_manifest, write_forecast_folder

A1, A2, A3 = ("a", "1"), ("a", "2"), ("a", "3")
EMPTY = State({}, {})
LATEST: VersionPins = {"a": frozenset(("latest",))}


def found(**prints: str) -> dict[Key, Found]:
    """`v1="x"` is version 1 of the model `a`, with the fingerprint x."""
    return {("a", name[1:]): Found(Path(), each, None) for name, each in prints.items()}


def serving(**prints: str) -> State:
    return State({("a", name[1:]): Snapshot("/copy", each) for name, each in prints.items()}, {})


def failing(key: Key, print_: str, retry_at: float, state: State = EMPTY) -> State:
    return State(state.served, {key: Failure("broken", print_, True, 1, retry_at)})


@pytest.mark.parametrize(
    ("what", "now", "before", "state", "pins", "load", "unload"),
    [
        ("a new version that stays as it is", found(v1="x"), found(v1="x"), EMPTY, {}, [A1], []),
        ("one that is being copied", found(v1="y"), found(v1="x"), EMPTY, {}, [], []),
        ("one that has just appeared", found(v1="x"), {}, EMPTY, {}, [], []),
        ("one that has vanished again", {}, found(v1="x"), EMPTY, {}, [], []),
        ("what is served already", found(v1="x"), found(v1="x"), serving(v1="x"), {}, [], []),
        ("changed files", found(v1="y"), found(v1="y"), serving(v1="x"), {}, [A1], []),
        ("one that is gone at one look", {}, found(v1="x"), serving(v1="x"), {}, [], []),
        ("one that is gone at two", {}, {}, serving(v1="x"), {}, [], [A1]),
        ("one that failed", found(v1="x"), found(v1="x"), failing(A1, "x", 9.0), {}, [], []),
        ("one that failed, when it is due", found(v1="x"), found(v1="x"), failing(A1, "x", 5.0), {}, [A1], []),
        ("one that failed and has changed", found(v1="y"), found(v1="y"), failing(A1, "x", 9.0), {}, [A1], []),
        ("a request, without a look before", found(v1="x"), None, EMPTY, {}, [A1], []),
        ("a request for what is gone", found(v2="x"), None, serving(v1="x"), {}, [A2], [A1]),
        ("the latest", found(v1="x", v2="x"), found(v1="x", v2="x"), EMPTY, LATEST, [A2], []),
        ("a later one", found(v1="x", v2="x"), found(v1="x", v2="x"), serving(v1="x"), LATEST, [A2], []),
        ("an earlier one", found(v1="x", v2="x"), found(v1="x", v2="x"), serving(v2="x"), LATEST, [], []),
        ("the latest is broken", found(v1="x", v2="y"), found(v1="x", v2="y"), failing(A2, "y", 9.0), LATEST, [A1], []),
        ("two after the switch", found(v1="x", v2="x"), found(v1="x", v2="x"), serving(v1="x", v2="x"), LATEST, [], [A1]),
    ],
    ids=lambda value: value if type(value) is str else "",
)
def test_what_a_look_leads_to(
    what: str,
    now: Mapping[Key, Found],
    before: Mapping[Key, Found] | None,
    state: State,
    pins: VersionPins,
    load: list[Key],
    unload: list[Key],
) -> None:
    assert plan_changes(now, before, state, pins, 5.0) == Plan(load, unload, {}, []), what


def test_a_folder_that_cannot_be_served_is_shown_and_forgotten_when_it_is_gone() -> None:
    broken = {A1: Found(Path(), None, "a link")}
    assert plan_changes(broken, broken, EMPTY, {}, 0.0) == Plan([], [], {A1: "a link"}, [])
    assert plan_changes({}, {}, failing(A1, "x", 0.0), {}, 9.0) == Plan([], [], {}, [A1])


def test_a_target_is_the_same_after_its_way_between_processes() -> None:
    state = State({A1: Snapshot("/copy/1", "x")}, {A2: Failure("broken", None, is_update=True)}, frozenset((A3,)))
    assert read_target(write_target(state.target())) == state.target()


class FakeMember:
    """Serves what it is told to, unless `refuses` gives a reason or it is lost."""

    def __init__(self, refuses: Callable[[Key], str | None] = lambda key: None) -> None:
        self.refuses = refuses
        self.is_lost = False
        self.is_closed = False
        self.prepared: Target = ()
        self.served: set[Key] = set()
        self.shown: dict[Key, tuple[str, str | None]] = {}

    async def prepare(self, change: int, target: Target) -> dict[Key, str]:
        await asyncio.sleep(0)
        if self.is_lost:
            raise MemberLost
        self.prepared = target
        new = [each.key for each in target if each.folder is not None and each.key not in self.served]
        return {key: reason for key in new if (reason := self.refuses(key)) is not None}

    async def commit(self, change: int) -> None:
        await asyncio.sleep(0)
        if self.is_lost:
            raise MemberLost
        self.served = {each.key for each in self.prepared if each.folder is not None}
        self.show(self.prepared)

    def abort(self, change: int) -> None:
        self.prepared = ()

    def show(self, target: Target) -> None:
        self.shown = {each.key: (each.state, each.reason) for each in target}

    def close(self) -> None:
        self.is_closed = True


class World:
    """A controller over a folder, with two members that have joined; what is in `broken` fails its verification."""

    def __init__(self, folder: Path, *, pins: VersionPins | None = None) -> None:
        self.folder = folder
        self.broken: dict[Key, str] = {}
        self.states: list[State] = []
        self.reloads: list[str] = []
        self.time_s = 0.0
        self.members = [FakeMember(), FakeMember()]
        self.controller = Controller(
            [folder],
            EMPTY,
            self.verify,
            mode="poll",
            pins=pins,
            on_changed=self.states.append,
            on_reload=self.reloads.append,
            now=lambda: self.time_s,
        )

    async def verify(self, key: Key, folder: Path) -> Snapshot:
        await asyncio.sleep(0)
        if key in self.broken:
            raise FolderError(self.broken[key])
        return Snapshot(f"/copy/{len(self.states)}", fingerprint(folder))

    async def start(self) -> World:
        for member in self.members:
            await self.controller.join(member)
        return self

    @property
    def served(self) -> set[Key]:
        first, *others = (member.served for member in self.members)
        assert all(other == first for other in others)
        return first


async def test_what_a_member_cannot_load_no_member_serves(tmp_path: Path) -> None:
    world = await World(tmp_path).start()
    write_forecast_folder(tmp_path, "a", "1")
    await world.controller.load("a")
    write_forecast_folder(tmp_path, "a", "2")
    world.members[1].refuses = lambda key: "no memory left"
    with pytest.raises(LoadFailed, match="version 2: no memory left"):
        await world.controller.load("a")
    assert world.served == {A1}
    assert world.members[0].shown == {A1: ("READY", None), A2: ("UNAVAILABLE", "no memory left")}
    assert world.reloads == ["loaded", "error"]
    world.members[1].refuses = lambda key: None
    await world.controller.load("a")
    assert world.served == {A1, A2}


async def test_a_member_that_is_lost_holds_nothing_up(tmp_path: Path) -> None:
    world = await World(tmp_path).start()
    write_forecast_folder(tmp_path, "a", "1")
    lost = world.members.pop()
    lost.is_lost = True
    await world.controller.load("a")
    assert world.served == {A1}
    assert lost.is_closed


async def test_a_member_that_joins_while_something_changes_serves_what_the_others_serve(tmp_path: Path) -> None:
    world = await World(tmp_path).start()
    write_forecast_folder(tmp_path, "a", "1")
    late = FakeMember()
    await asyncio.gather(world.controller.load("a"), world.controller.join(late))
    world.members.append(late)
    assert world.served == {A1}
    await world.controller.unload("a")
    assert world.served == set()


async def test_what_the_first_member_cannot_load_is_shown_and_the_rest_is_served(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.controller = Controller([tmp_path], serving(v1="x", v2="x"), world.verify, mode="poll")
    for member in world.members:
        member.refuses = lambda key: "its example differs" if key == A2 else None
    await world.start()
    assert world.served == {A1}
    assert world.members[0].shown[A2] == ("UNAVAILABLE", "its example differs")


async def test_loads_and_unloads_at_once_are_carried_out_one_after_the_other(tmp_path: Path) -> None:
    world = await World(tmp_path).start()
    write_forecast_folder(tmp_path, "a", "1")
    await world.controller.load("a")
    await asyncio.gather(*(world.controller.unload("a") if n % 2 else world.controller.load("a") for n in range(9)))
    assert world.served == {A1}


async def test_too_many_requests_at_once_are_refused(tmp_path: Path) -> None:
    world = await World(tmp_path).start()
    write_forecast_folder(tmp_path, "a", "1")
    outcomes = await asyncio.gather(*(world.controller.load("a") for _ in range(MAX_PENDING + 3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes if outcome is not None] == [Overloaded] * 3


async def test_unknown_models_are_not_found(tmp_path: Path) -> None:
    world = await World(tmp_path).start()
    for action in (world.controller.load, world.controller.unload):
        with pytest.raises(ModelNotFound):
            await action("x" * 10_000)


async def test_a_broken_version_is_tried_again_later_and_later(tmp_path: Path) -> None:
    world = await World(tmp_path).start()
    write_forecast_folder(tmp_path, "a", "1")
    world.broken[A1] = "half of it is missing"
    waits = []
    for _ in range(2):
        await world.controller.poll()
    for _ in range(4):
        failure = world.controller.state.failed[A1]
        waits.append(failure.retry_at - world.time_s)
        await world.controller.poll()
        assert world.controller.state.failed[A1] == failure  # not before its time
        world.time_s = failure.retry_at
        await world.controller.poll()
    assert waits == [2.0, 4.0, 8.0, 16.0]
    world.broken.clear()
    world.time_s += 3600
    await world.controller.poll()
    assert world.served == {A1}


async def test_while_the_folder_cannot_be_read_nothing_is_unloaded(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_forecast_folder(models, "a", "1")
    world = await World(models).start()
    for _ in range(2):
        await world.controller.poll()
    assert world.served == {A1}
    models.rename(tmp_path / "elsewhere")
    for _ in range(3):
        await world.controller.poll()
    assert world.served == {A1}
    assert world.controller.error is not None
    models.mkdir()
    for _ in range(3):
        await world.controller.poll()
    assert world.served == set()


async def test_every_state_is_kept_before_a_member_serves_it(tmp_path: Path) -> None:
    world = await World(tmp_path).start()
    write_forecast_folder(tmp_path, "a", "1")
    kept: list[bool] = []
    commit = world.members[0].commit

    async def observed(change: int) -> None:
        kept.append(A1 in world.states[-1].served)
        await commit(change)

    world.members[0].commit = observed  # type: ignore[method-assign]
    await world.controller.load("a")
    assert kept == [True]


async def test_what_one_member_withdraws_all_withdraw_until_its_folder_changes_or_it_is_loaded_again(tmp_path: Path) -> None:
    world = await World(tmp_path).start()
    folder = write_forecast_folder(tmp_path, "a", "1")
    write_forecast_folder(tmp_path, "b", "1")
    for name in ("a", "b"):
        await world.controller.load(name)

    def withdrawal() -> Withdrawal:
        return Withdrawal(*A1, world.controller.state.served[A1].folder, "its run did not end")

    stale = withdrawal()
    await world.controller.withdraw(stale)
    assert world.served == {("b", "1")}
    assert world.members[1].shown[A1] == ("UNAVAILABLE", "its run did not end")
    assert world.states[-1].failed[A1].reason == "its run did not end"
    world.time_s += 10**6
    for _ in range(3):
        await world.controller.poll()
    assert world.served == {("b", "1")}
    late = FakeMember()
    await world.controller.join(late)
    assert late.served == {("b", "1")}
    await world.controller.load("a")
    assert world.served == {A1, ("b", "1")}
    await world.controller.withdraw(stale)  # of the copy before, which nobody serves
    assert world.served == {A1, ("b", "1")}
    await world.controller.withdraw(withdrawal())
    edit_manifest(folder, lambda manifest: manifest.update(description="another one"))
    for _ in range(3):
        await world.controller.poll()
    assert world.served == {A1, ("b", "1")}


async def test_a_version_that_is_withdrawn_while_another_is_loaded_stays_withdrawn(tmp_path: Path) -> None:
    world = await World(tmp_path).start()
    write_forecast_folder(tmp_path, "a", "1")
    await world.controller.load("a")
    write_forecast_folder(tmp_path, "b", "1")
    withdrawal = Withdrawal(*A1, world.controller.state.served[A1].folder, "its run did not end")
    await asyncio.gather(world.controller.load("b"), world.controller.withdraw(withdrawal))
    assert world.served == {("b", "1")}
    assert world.controller.state.loading == frozenset()
