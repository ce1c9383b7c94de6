"""Results are written, merged and read back, and become Markdown tables."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from training.evaluation.benchmark import Evaluation, Row
from training.evaluation.client import EvaluationError
from training.evaluation.registry import BENCHMARKS, evaluate
from training.evaluation.report import as_markdown, read_results, show, write_results

ROWS = [Row("yearly", "sMAPE", 15.5, {"naive": 17.88}, {"N-BEATS": 15.93}), Row("other", "sMAPE", None, note="no model for D")]
FOUND = Evaluation("m3", ROWS, ["forecast-yearly/1"], 645, 2.0, {"yearly": [[0.1, 0.12]]})


def test_results_are_merged_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.json"
    write_results([FOUND], path)
    write_results([Evaluation("sst2", [], [], 0, 0.0)], path)
    results = read_results(path)
    assert list(results) == ["m3", "sst2"]
    assert results["m3"]["rows"][0]["score"] == 15.5
    assert results["m3"]["rows_per_s"] == 322.5
    assert results["sst2"]["rows_per_s"] == 0


@pytest.mark.parametrize("text", ["", "[]", '{"m3": 3}'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(EvaluationError):
        write_results([FOUND], tmp_path / "scores.json")


def test_markdown_has_a_table_for_each_benchmark(tmp_path: Path) -> None:
    write_results([FOUND], tmp_path / "scores.json")
    text = as_markdown(read_results(tmp_path / "scores.json"), {"tourism": "not run", "m3": "M3"})
    assert "| yearly | sMAPE | **15.50** | 17.88 | 15.93 |" in text
    assert "| other | sMAPE | not served |  |  |" in text
    assert "no model for D" in text
    assert "`forecast-yearly/1`; 645 rows at 322 a second" in text
    assert "tourism" not in text


def test_the_terminal_shows_scores_and_notes() -> None:
    output = io.StringIO()
    show(FOUND, Console(file=output, width=160))
    text = output.getvalue()
    assert "15.50" in text
    assert "naive 17.88" in text
    assert "no model for D" in text
    assert "645 rows in 2.0 s, 322 rows/s; by forecast-yearly/1" in text


@pytest.mark.parametrize("name", BENCHMARKS)
def test_what_could_not_be_scored_is_said(name: str, tmp_path: Path) -> None:
    found, message = evaluate(name, "http://127.0.0.1:1", tmp_path)
    assert found is None
    assert "no file" in message
