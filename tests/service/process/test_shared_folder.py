"""A folder that several processes share, and that none leaves behind."""

from __future__ import annotations

from pathlib import Path

from service.process.shared_folder import LOCK_FILE, shared_folder


def test_a_shared_folder_is_removed_at_its_end_and_not_by_others(tmp_path: Path) -> None:
    with shared_folder("toy-", tmp_path) as first:
        with shared_folder("toy-", tmp_path) as second:
            assert first != second
            assert first.is_dir()
        assert list(tmp_path.iterdir()) == [first]
    assert list(tmp_path.iterdir()) == []


def test_folders_of_parents_that_were_killed_are_removed_at_the_next_start(tmp_path: Path) -> None:
    for name in ("toy-killed", "other-killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / LOCK_FILE).touch()
    (tmp_path / "toy-just-made").mkdir()
    with shared_folder("toy-", tmp_path) as folder:
        assert {path.name for path in tmp_path.iterdir()} == {"other-killed", "toy-just-made", folder.name}
