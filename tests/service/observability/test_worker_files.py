"""What workers show each other, one file for each of them and each subject."""

from __future__ import annotations

import os
from pathlib import Path

from service.observability.worker_files import WorkerFiles, path_of, remove_files
from service.wire import read, write


def test_a_worker_reads_what_the_others_show_of_its_subject(tmp_path: Path) -> None:
    files = WorkerFiles("drift", tmp_path)
    files.write(["own"])
    for subject, pid, value in (("drift", 1, ["of 1"]), ("drift", 2, ["of 2"]), ("exemplars", 1, ["of something else"])):
        path_of(tmp_path, subject, pid).write_bytes(write(value))
    assert sorted(files.read_others()) == [["of 1"], ["of 2"]]


def test_what_was_shown_before_is_replaced(tmp_path: Path) -> None:
    files = WorkerFiles("drift", tmp_path)
    for value in ([1], [2]):
        files.write(value)
    (file,) = tmp_path.iterdir()
    assert file == path_of(tmp_path, "drift", os.getpid())
    assert read(file.read_bytes()) == [2]


def test_without_a_folder_nothing_is_shown_and_nobody_is_there() -> None:
    files = WorkerFiles("drift", None)
    files.write([1])
    assert not files.is_shared
    assert list(files.read_others()) == []


def test_a_folder_that_is_gone_harms_nothing(tmp_path: Path) -> None:
    files = WorkerFiles("drift", tmp_path / "gone")
    files.write([1])
    assert list(files.read_others()) == []


def test_the_files_of_one_worker_are_removed_and_no_others(tmp_path: Path) -> None:
    kept = [path_of(tmp_path, "drift", 112), tmp_path / "gauge_livesum_12.db"]
    for file in [*kept, path_of(tmp_path, "drift", 12), path_of(tmp_path, "exemplars", 12)]:
        file.write_bytes(b"[]")
    remove_files(tmp_path, 12)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    remove_files(tmp_path, 12)
