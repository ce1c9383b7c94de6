"""A sequence in pieces gives, bit for bit, what it gives whole: whatever the pieces, and whoever else is in its batches."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.models.example import find_differences
from service.models.folder import ModelOptions
from service.models.loading import check_folder, load_model
from service.models.model import Model
from service.sequences.state import SequenceState
from service.wire import read, write
from tests.streams import StreamCase, imported_cases, stream_cases

CASES = stream_cases() | imported_cases()
MAX_STEPS = 40
OPTIONS = ModelOptions(device="cpu")
quick = settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Served:
    """A model that streams, on an event loop of its own."""

    def __init__(self, case: StreamCase, folder: Path) -> None:
        self.case = case
        self.folder = folder
        self.loop = asyncio.new_event_loop()
        self.model: Model = self.loop.run_until_complete(load_model(folder, OPTIONS))

    def close(self) -> None:
        self.loop.run_until_complete(self.model.stop())
        self.loop.close()

    def reload(self) -> None:
        """Load the same folder anew."""
        self.loop.run_until_complete(self.model.stop())
        self.model = self.loop.run_until_complete(load_model(self.folder, OPTIONS))

    def series(self, seed: int, length: int) -> list[Any]:
        return self.case.draw(np.random.default_rng(seed), length)

    async def advance(self, piece: Sequence[Any], state: SequenceState | None) -> tuple[Any, SequenceState]:
        """The prediction as a client reads it, and the new state."""
        predictions, states = await self.model.advance([self.case.make_instance(list(piece))], [state])
        return read(write(predictions))[0], states[0]

    async def advance_all(self, series: Sequence[Any], ends: Sequence[int]) -> tuple[Any, SequenceState]:
        """Send a series in pieces: the last prediction, or those of all steps; and the last state."""
        found: list[Any] = []
        state: SequenceState | None = None
        for start, end in itertools.pairwise([0, *ends, len(series)]):
            prediction, state = await self.advance(series[start:end], state)
            found = [*found, *prediction] if self.case.has_steps else prediction
        assert state is not None
        return found, state

    def assert_same(self, found: Any, expected: Any) -> None:
        """Predictions and states are equal, or of cells whose runtime rounds otherwise in other batches, nearly so."""
        if self.case.is_exact:
            assert found == expected
            return
        assert find_differences(found[0], expected[0], 1e-5, 1e-4) == []
        assert found[1].steps == expected[1].steps
        for name, values in expected[1].tensors.items():
            np.testing.assert_allclose(found[1].tensors[name], values, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module", params=CASES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    case = CASES[request.param]
    model = Served(case, case.write(tmp_path_factory.mktemp("models")))
    yield model
    model.close()


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, list[int]]:
    """A length, and where the series is cut."""
    length = draw(st.integers(1, MAX_STEPS))
    ends = draw(st.lists(st.integers(1, max(1, length - 1)), max_size=8, unique=True))
    return length, sorted(end for end in ends if end < length)


def test_the_folders_are_valid(served: Served) -> None:
    assert check_folder(served.folder) == []
    assert served.model.can_stream


@quick
@given(st.integers(0, 10_000), cuts())
def test_pieces_of_any_size_are_the_whole(served: Served, seed: int, cut: tuple[int, list[int]]) -> None:
    length, ends = cut
    series = served.series(seed, length)

    async def run() -> None:
        whole = await served.advance_all(series, [])
        found = await served.advance_all(series, ends)
        served.assert_same(found, whole)
        assert found[1].steps == length

    served.loop.run_until_complete(run())


Other = tuple[int, int, bool]
"""Seed and length of other rows in a batch, and whether they are pieces of a sequence."""


@quick
@given(
    st.lists(st.tuples(st.integers(0, 10_000), cuts()), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 99), st.integers(1, MAX_STEPS), st.booleans()), max_size=4),
)
def test_other_rows_in_the_batches_change_nothing(
    served: Served, sequences: list[tuple[int, tuple[int, list[int]]]], others: list[Other]
) -> None:
    series = [served.series(seed, length) for seed, (length, _) in sequences]

    async def other(seed: int, length: int, is_stream: bool) -> None:
        instance = served.case.make_instance(served.series(seed, length))
        if is_stream:
            await served.model.advance([instance, instance], [None, None])
        else:
            await served.model.predict([instance])

    async def run() -> None:
        alone = [await served.advance_all(each, []) for each in series]
        together, _ = await asyncio.gather(
            asyncio.gather(*(served.advance_all(each, ends) for each, (_, (_, ends)) in zip(series, sequences, strict=True))),
            asyncio.gather(*(other(*each) for each in others)),
        )
        for found, expected in zip(together, alone, strict=True):
            served.assert_same(found, expected)

    served.loop.run_until_complete(run())


def test_several_sequences_of_one_request_are_what_each_is_alone(served: Served) -> None:
    pieces = [served.series(seed, 3 + 5 * seed) for seed in range(4)]
    states: list[SequenceState | None] = [None] * 4

    async def run() -> None:
        alone = [await served.advance_all([*piece, *piece], [len(piece)]) for piece in pieces]
        instances = [served.case.make_instance(piece) for piece in pieces]
        first, middle = await served.model.advance(instances, states)
        second, last = await served.model.advance(instances, middle)
        for index, (prediction, state) in enumerate(alone):
            found = read(write([first[index], second[index]]))
            served.assert_same((found[0] + found[1] if served.case.has_steps else found[1], last[index]), (prediction, state))

    served.loop.run_until_complete(run())


def test_a_state_outlives_its_bytes_and_a_reload_of_the_graph(served: Served) -> None:
    series = served.series(3, 12)

    async def begin() -> tuple[Any, SequenceState]:
        return await served.advance(series[:5], None)

    whole = served.loop.run_until_complete(served.advance_all(series, [5]))
    _, state = served.loop.run_until_complete(begin())
    block = state.to_bytes()
    assert len(block) == served.model.state_bytes
    served.reload()
    _, last = served.loop.run_until_complete(served.advance(series[5:], SequenceState.from_bytes(block)))
    assert last == whole[1]  # in the same pieces, whatever the cell
    assert last.steps == 12


def test_a_step_may_be_repeated(served: Served) -> None:
    series = served.series(4, 9)

    async def run() -> None:
        _, state = await served.advance(series[:6], None)
        once = await served.advance(series[6:], state)
        again = await served.advance(series[6:], state)
        assert once == again

    served.loop.run_until_complete(run())


def test_a_start_is_a_row_without_a_state(served: Served) -> None:
    """Where the task cuts nothing, a sequence's first piece is answered as the same row that is a whole."""
    instance = served.case.make_instance(served.series(5, 4))

    async def run() -> None:
        predictions, _ = await served.model.advance([instance], [None])
        assert read(write(predictions)) == read(write(await served.model.predict([instance])))

    served.loop.run_until_complete(run())
