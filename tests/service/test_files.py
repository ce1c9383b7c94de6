"""Files that an operator names: their bounds, and that a change is noticed once it is whole."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from service.errors import StartError
from service.files import FileWatch, find_readers, read_bounded


def test_a_file_is_read_up_to_its_bound_and_refused_beyond_it(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"12345")
    assert read_bounded(file, 5) == b"12345"
    with pytest.raises(StartError, match="has more than 4 bytes"):
        read_bounded(file, 4)


@pytest.mark.parametrize(
    ("mode", "is_own", "readers"),
    [
        (0o600, True, ""),
        (0o400, False, ""),
        (0o640, True, "group"),
        (0o640, False, ""),
        (0o644, True, "everyone"),
        (0o644, False, "everyone"),
        (0o604, True, "everyone"),
        (0o622, True, ""),
    ],
)
def test_who_else_may_read_a_file_is_known_by_its_mode_through_links(
    tmp_path: Path, mode: int, is_own: bool, readers: str
) -> None:
    (tmp_path / "key").write_text("secret")
    (tmp_path / "key").chmod(mode)
    (tmp_path / "link").symlink_to("key")
    user = os.stat(tmp_path / "key").st_uid + (0 if is_own else 1)
    assert find_readers(tmp_path / "link", user) == readers


def test_nobody_reads_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert find_readers(tmp_path / "none", 0) == ""


def test_links_within_the_folder_are_followed_as_kubernetes_makes_them(tmp_path: Path) -> None:
    (tmp_path / "..2026_11_21").mkdir()
    (tmp_path / "..2026_11_21" / "keys").write_text("now")
    (tmp_path / "..data").symlink_to("..2026_11_21")
    (tmp_path / "keys").symlink_to("..data/keys")
    assert read_bounded(tmp_path / "keys", 10) == b"now"


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    (tmp_path / "other").write_text("secret")
    (tmp_path / "mount" / "keys").symlink_to("../other")
    with pytest.raises(StartError, match="leads out of the folder"):
        read_bounded(tmp_path / "mount" / "keys", 10)


def test_what_is_no_regular_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StartError, match="is not a regular file"):
        read_bounded(tmp_path / "fifo", 10)
    with pytest.raises(StartError, match=r"is not a regular file|cannot be read"):
        read_bounded(tmp_path, 10)
    with pytest.raises(StartError, match="is not a regular file"):
        read_bounded(Path("/dev/zero"), 10)


def test_a_file_that_is_not_there_or_a_link_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    for name in ("missing", "circle"):
        with pytest.raises(StartError, match=f"{name} cannot be read: "):
            read_bounded(tmp_path / name, 10)


def watch_of(file: Path) -> tuple[FileWatch, list[str]]:
    """A watch that has read its file, and what it reads from now on."""
    read: list[str] = []
    watch = FileWatch([file], lambda: read.append(file.read_text()))
    watch.look()
    watch.look()
    read.clear()
    return watch, read


def test_a_changed_file_is_read_once_it_has_stayed_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("a")
    watch, read = watch_of(file)
    watch.look()
    assert read == []
    file.write_text("half")
    watch.look()
    file.write_text("half of it, and the rest")
    watch.look()
    assert read == []
    watch.look()
    watch.look()
    assert read == ["half of it, and the rest"]


def test_a_change_that_keeps_size_and_time_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("a")
    os.utime(file, (1, 1))
    watch, read = watch_of(file)
    file.write_text("b")
    os.utime(file, (1, 1))
    watch.look()
    watch.look()
    assert read == ["b"]


def test_a_file_that_is_renamed_into_place_or_linked_anew_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "1").write_text("one")
    (tmp_path / "2").write_text("two")
    file = tmp_path / "keys"
    file.symlink_to("1")
    watch, read = watch_of(file)
    (tmp_path / "new").symlink_to("2")
    (tmp_path / "new").rename(file)
    watch.look()
    watch.look()
    assert read == ["two"]


def test_what_cannot_be_used_is_logged_once_and_tried_again_when_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text("a")
    read: list[str] = []

    def reload() -> None:
        if (text := file.read_text()) == "bad":
            raise StartError("bad keys")
        read.append(text)

    watch = FileWatch([file], reload)
    watch.look()
    watch.look()
    file.write_text("bad")
    with caplog.at_level(logging.ERROR):
        for _ in range(4):
            watch.look()
    assert [record.__dict__["reason"] for record in caplog.records] == ["bad keys"]
    file.write_text("better")
    watch.look()
    watch.look()
    assert read == ["a", "better"]
