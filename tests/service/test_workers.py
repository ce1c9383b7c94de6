"""When a dead worker is replaced. That it is, is proven with real processes in test_main.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.workers import LOCK_FILE, MAX_DELAY_S, YOUNG_S, replacement_delay_s, shared_folder


@pytest.mark.parametrize(
    ("lifetime_s", "previous_s", "delay_s"),
    [
        (YOUNG_S, 0.0, 0.0),
        (3600.0, MAX_DELAY_S, 0.0),
        (1.0, 0.0, 0.5),
        (1.0, 0.5, 1.0),
        (1.0, 4.0, 8.0),
        (1.0, MAX_DELAY_S, MAX_DELAY_S),
    ],
)
def test_who_dies_young_is_replaced_later_and_later(lifetime_s: float, previous_s: float, delay_s: float) -> None:
    assert replacement_delay_s(lifetime_s, previous_s) == delay_s


def test_a_shared_folder_is_removed_at_its_end_and_not_by_others(tmp_path: Path) -> None:
    with shared_folder("toy-", tmp_path) as first:
        with shared_folder("toy-", tmp_path) as second:
            assert first != second
            assert first.is_dir()
        assert list(tmp_path.iterdir()) == [first]
    assert list(tmp_path.iterdir()) == []


def test_shared_folders_of_the_dead_are_removed_at_the_next_start(tmp_path: Path) -> None:
    for name in ("toy-dead", "other-dead"):
        (tmp_path / name).mkdir()
        (tmp_path / name / LOCK_FILE).touch()
    (tmp_path / "toy-just-made").mkdir()
    with shared_folder("toy-", tmp_path) as folder:
        assert {path.name for path in tmp_path.iterdir()} == {"other-dead", "toy-just-made", folder.name}
