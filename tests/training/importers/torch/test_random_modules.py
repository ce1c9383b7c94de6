"""Modules composed at random: a graph that the translator writes answers every row as the module alone does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.torch_programs import BACK_TO_TIME, OF_ROW, OVER_TIME, TO_ROW, WIDTH, Composed
from training.importers.torch.artifact import GraphRun
from training.importers.torch.candidates import translate_trial
from training.importers.torch.checks import Reference, verify
from training.importers.torch.errors import ModuleRefused, Untranslatable
from training.importers.torch.trial import try_module

# Torch warns of rows that are too short for a deviation, and of what its kernels copy.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
TOLERANCE = 2e-4
MAX_ROUNDING = 1e-5
"""Where the module's own answers in float32 are further from those in float64, nothing follows from a difference."""
STEEP = {"argmax", "where of its row"}
"""Steps whose answer jumps: behind others, rounding alone decides on which side."""
EXAMPLE_LENGTHS = (9, 14)
MAX_STEPS = 20


@st.composite
def programs(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Kinds and names of steps, in an order in which they fit."""
    over, to_row = (sorted(table.keys() - STEEP) for table in (OVER_TIME, TO_ROW))
    program = [("over", name) for name in draw(st.lists(st.sampled_from(over), min_size=1, max_size=3))]
    program += draw(st.sampled_from([[], [("add", "+")]]))
    program.append(("to", draw(st.sampled_from(to_row))))
    program += [("of", name) for name in draw(st.lists(st.sampled_from(sorted(OF_ROW)), max_size=2))]
    back = draw(st.sampled_from([None, *sorted(BACK_TO_TIME)]))
    if back is not None:
        program.append(("back", back))
        program += [("over", name) for name in draw(st.lists(st.sampled_from(over), max_size=2))]
        program += draw(st.sampled_from([[], [("to", name) for name in to_row[:1]], [("to", draw(st.sampled_from(to_row)))]]))
    return program


def compare(program: list[tuple[str, str]], seed: int) -> str:
    """What became of a program: "equal", or why there is no graph; fails where a row's answer is not the module's."""
    module = Composed(program, seed).eval()
    random = np.random.default_rng(seed)

    def rows_of(lengths: Any) -> list[dict[str, Any]]:
        return [{"x": random.standard_normal((length, WIDTH)).astype(np.float32)} for length in lengths]

    try:
        trial = try_module(module, ["x"], [row["x"] for row in rows_of(EXAMPLE_LENGTHS)], None, None, True, None)
        artifact = translate_trial(trial)
    except ModuleRefused as exc:
        return f"refused: {exc}"
    except Untranslatable as exc:
        return f"untranslated: {exc}"
    graph = GraphRun(artifact, trial.subject)
    reference = Reference(trial.subject, trial.names, {entry.name: entry.shape for entry in artifact.outputs})
    rows, answers = [], []
    verdict = verify(artifact, trial.subject, trial.names)
    if verdict.rounding > MAX_ROUNDING:
        return "ill-conditioned"
    assert not verdict.broken, (program, seed)
    for row in rows_of(random.integers(verdict.min_length, MAX_STEPS, 10)):
        answer = reference.answer(row)
        if all(value.size and np.isfinite(value).all() for value in answer.values()):
            rows.append(row)
            answers.append(answer)
    for padding, extra in ((0.0, 0), (50.0, 3), (-3e4, 7)):
        for found, wanted in zip(graph.answer(rows, padding, extra), answers, strict=True):
            for name, values in wanted.items():
                assert found[name].shape == values.shape
                np.testing.assert_allclose(found[name], values, atol=TOLERANCE, rtol=TOLERANCE, err_msg=f"{program}, {seed}")
    return "equal"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(programs(), st.integers(0, 2**16))
def test_rows_of_a_random_module_are_answered_as_alone(program: list[tuple[str, str]], seed: int) -> None:
    with torch.random.fork_rng():
        event(compare(program, seed)[:60].partition("(")[0])


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(programs(), st.integers(0, 2**16))
def test_rows_of_many_random_modules_are_answered_as_alone(program: list[tuple[str, str]], seed: int) -> None:
    with torch.random.fork_rng():
        event(compare(program, seed)[:60].partition("(")[0])


UNTRANSLATED = {
    "average pool": "ceil_mode",
    "positions": "beside a tensor without rows",
    "sorted": "sorting along the time axis",
}
"""Steps that are left to the exporters, and words of the reason."""
SINGLE = [("over", name) for name in OVER_TIME] + [("to", name) for name in TO_ROW]


@pytest.mark.parametrize("step", SINGLE, ids=lambda step: step[1])
def test_every_step_is_translated_behind_a_recurrent_layer(step: tuple[str, str]) -> None:
    with torch.random.fork_rng():
        found = compare([("over", "lstm"), step, *([("to", "mean")] if step[0] == "over" else [])], 1)
    assert UNTRANSLATED.get(step[1], "equal") in found


def test_the_shortest_row_is_one_that_is_answered_in_padded_batches_too() -> None:
    """Of two steps, "last three" leaves the padding's in the window of the pool."""
    with torch.random.fork_rng():
        assert compare([("over", "last three"), ("over", "max pool"), ("to", "attention")], 0) == "equal"
