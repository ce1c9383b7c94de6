"""The scores of baselines are computed once for the same facts."""

from __future__ import annotations

from pathlib import Path

from training.scoring.baselines import score_baselines


def test_a_baseline_is_scored_again_only_when_a_fact_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "baselines.json"
    scored: list[str] = []

    def score(name: str) -> dict[str, float]:
        scored.append(name)
        return {"mae": float(len(scored))}

    first = score_baselines(["a", "b"], score, file, [1, ["x"]])
    assert score_baselines(["b", "a"], score, file, [1, ["x"]]) == first
    assert scored == ["a", "b"]
    assert score_baselines(["a"], score, file, [2, ["x"]]) == {"a": {"mae": 3.0}}


def test_a_baseline_without_scores_is_left_out_and_asked_for_again(tmp_path: Path) -> None:
    file = tmp_path / "baselines.json"
    assert score_baselines(["slow"], lambda name: None, file, []) == {}
    assert score_baselines(["slow"], lambda name: {"mae": 1.0}, file, []) == {"slow": {"mae": 1.0}}


def test_a_damaged_file_is_written_anew(tmp_path: Path) -> None:
    file = tmp_path / "baselines.json"
    for content in ("{", "[]"):
        file.write_text(content)
        assert score_baselines(["a"], lambda name: {"mae": 1.0}, file, []) == {"a": {"mae": 1.0}}
