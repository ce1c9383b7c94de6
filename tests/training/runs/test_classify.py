"""What a run of a text classifier scores, beyond the measures themselves."""

from __future__ import annotations

import numpy as np
import pytest

from training.data.texts import Texts, TextSplit
from training.runs.classify import _score


def split(*seen: bool) -> TextSplit:
    part = Texts(("a", "b", "c", "d"), np.array([0, 1, 1, 0]))
    return TextSplit(("bad", "good"), part, {"set": part}, {"set": part}, seen={"set": np.array(seen)})


ANSWERS = {"set": np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]], np.float32)}


def test_texts_that_training_never_saw_have_scores_of_their_own() -> None:
    scores = _score(split(True, True, False, False), ANSWERS)
    assert scores["accuracy"] == 0.75
    assert scores["unseen_accuracy"] == 0.5
    assert scores["unseen_ece"] == pytest.approx((0.6 + 0.3) / 2)


@pytest.mark.parametrize("seen", [False, True])
def test_where_all_texts_are_of_one_kind_there_is_one_score(seen: bool) -> None:
    assert not any(name.startswith("unseen") for name in _score(split(*[seen] * 4), ANSWERS))
