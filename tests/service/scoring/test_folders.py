from __future__ import annotations

import functools
from pathlib import Path

import pyarrow.csv
import pytest

from service.models.folder import ModelOptions
from service.scoring.folders import FolderRun, list_files, score_folder
from service.scoring.run import TooManyRejected
from service.tasks.tables import TableError, TableOptions
from tests.folders import write_text_folder


def run_on(models: Path, output: Path, *, overwrite: bool = False, max_rejected: int | None = None) -> FolderRun:
    options = functools.partial(ModelOptions, "cpu")
    return FolderRun("toy-sentiment", [models], options, TableOptions(), output, overwrite, max_rejected)


def labels(path: Path) -> list[str]:
    found: list[str] = pyarrow.csv.read_csv(path).column("label").to_pylist()
    return found


def test_each_file_of_a_folder_is_scored_once(tmp_path: Path) -> None:
    write_text_folder(tmp_path / "models")
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name, texts in (("a.csv", "good\nbad\n"), ("b.csv", "film\n\n"), ("_c.csv", "bad\n"), ("notes.txt", "")):
        (source / name).write_text(f"text\n{texts}")
    run = run_on(tmp_path / "models", target)
    assert [path.name for path in list_files(source)] == ["a.csv", "b.csv"]
    first = score_folder(run, source)
    assert (first.num_records, first.is_resumed) == (3, False)
    assert [len(labels(target / name)) for name in ("a.csv", "b.csv")] == [2, 1]
    (source / "d.csv").write_text("text\ngood\n")
    again = score_folder(run, source)
    assert (again.num_records, again.is_resumed) == (1, True)
    assert score_folder(run_on(tmp_path / "models", target, overwrite=True), source).num_records == 4


def test_a_file_of_which_all_was_rejected_is_done_too(tmp_path: Path) -> None:
    write_text_folder(tmp_path / "models")
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a.ndjson").write_text('{"text": 7}\n')
    run = run_on(tmp_path / "models", target)
    assert score_folder(run, source).num_rejected == 1
    (source / "b.csv").write_text("text\ngood\n")
    again = score_folder(run, source)
    assert (again.num_records, again.num_rejected) == (1, 0)
    assert sorted(path.name for path in target.iterdir()) == ["a.ndjson.rejected.ndjson", "b.csv"]


def test_a_folder_without_files_and_a_bad_file_are_refused(tmp_path: Path) -> None:
    write_text_folder(tmp_path / "models")
    source = tmp_path / "in"
    source.mkdir()
    with pytest.raises(TableError, match="holds no file whose name ends in"):
        score_folder(run_on(tmp_path / "models", tmp_path / "out"), source)
    (source / "a.ndjson").write_text('{"text": "good"}\n{"text": 7}\n')
    with pytest.raises(TooManyRejected):
        score_folder(run_on(tmp_path / "models", tmp_path / "out", max_rejected=0), source)
    (source / "a.ndjson").write_text("no json")
    with pytest.raises(TableError, match="first line is no JSON"):
        score_folder(run_on(tmp_path / "models", tmp_path / "out"), source)


def test_a_folder_is_not_scored_into_itself_nor_into_a_file(tmp_path: Path) -> None:
    write_text_folder(tmp_path / "models")
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.csv").write_text("text\ngood\n")
    for overwrite in (False, True):
        with pytest.raises(TableError, match="is the input"):
            score_folder(run_on(tmp_path / "models", source, overwrite=overwrite), source)
    (tmp_path / "out").write_text("mine")
    with pytest.raises(TableError, match="is a file"):
        score_folder(run_on(tmp_path / "models", tmp_path / "out"), source)
    assert (source / "a.csv").read_text() == "text\ngood\n"
    assert (tmp_path / "out").read_text() == "mine"
