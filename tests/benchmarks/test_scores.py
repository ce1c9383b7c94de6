"""The page of scores: its generated part is replaced, and everything else stays as it was written."""

from __future__ import annotations

import pytest

from benchmarks.scores import BEGIN, END, PAGE, main, section, with_section

RESULTS = {
    "m3": {
        "benchmark": "m3",
        "models": ["forecast-yearly/1"],
        "num_rows": 645,
        "seconds": 2.0,
        "rows_per_s": 322.5,
        "rows": [{"part": "yearly", "measure": "sMAPE", "score": 15.5, "baselines": {"naive": 17.88}}],
        "curves": {"yearly": [[0.1, 0.12], [0.9, 0.88]]},
    }
}


def test_the_section_stands_between_the_marks() -> None:
    page = f"# Scores\n\nWords.\n\n{BEGIN}\nold\n{END}\n\nMore words.\n"
    found = with_section(page, section(RESULTS))
    assert found.startswith(f"# Scores\n\nWords.\n\n{BEGIN}\n\n### m3\n")
    assert "| yearly | sMAPE | **15.50** | 17.88 |" in found
    assert found.endswith(f"{END}\n\nMore words.\n")
    assert "old" not in found
    assert with_section(found, section(RESULTS)) == found


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="the page has no"):
        with_section("# Scores", "text")


def test_the_page_has_its_marks() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1


def test_an_unknown_benchmark_ends_before_a_server_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["m5"])
    assert 'no benchmark "m5"; there are m3, tourism' in capsys.readouterr().err
