"""The probes of sentiment models: what counts as right, and that each of them is asked once."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.probes import NEUTRAL_AT_MOST, PROBES, Probe, is_right


def answer(label: str, score: float, **more: Any) -> dict[str, Any]:
    return {"label": label, "score": score, **more}


@pytest.mark.parametrize(
    ("expected", "prediction", "right"),
    [
        ("positive", answer("positive", 0.51), True),
        ("positive", answer("negative", 0.51), False),
        ("neutral", answer("positive", NEUTRAL_AT_MOST), True),
        ("neutral", answer("negative", 0.9), False),
        ("neutral", answer("negative", 0.9, uncertain=True), True),
        ("positive", answer("negative", 0.9, uncertain=True), False),
    ],
)
def test_a_neutral_text_is_right_with_even_odds_or_when_the_answer_is_uncertain(
    expected: Any, prediction: dict[str, Any], right: bool
) -> None:
    assert is_right(Probe("group", "text", expected), prediction) == right


def test_no_text_is_there_twice_and_every_group_of_opinions_has_both() -> None:
    assert len({probe.text for probe in PROBES}) == len(PROBES)
    for group in {probe.group for probe in PROBES}:
        answers = {probe.answer for probe in PROBES if probe.group == group}
        assert answers in ({"positive", "negative"}, {"neutral"}), group
