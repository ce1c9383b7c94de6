from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.errors import FolderError
from service.models.snapshots import MAX_FILES, copy_version, fingerprint


def make(folder: Path) -> Path:
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "tokenizer" / "words.txt").write_text("a b")
    return folder


def test_a_copy_holds_the_files_of_the_folder_alone(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    (tmp_path / "secret").write_text("of others")
    (source / ".hidden").write_text("half of a file")
    (source / "manifest.json").symlink_to("model.onnx")
    (source / "out.json").symlink_to(tmp_path / "secret")
    (source / "outside").symlink_to(tmp_path)
    os.mkfifo(source / "pipe")
    assert copy_version(source, tmp_path / "copy") == fingerprint(source)
    copied = {
        str(path.relative_to(tmp_path / "copy")): path.read_bytes() for path in (tmp_path / "copy").rglob("*") if path.is_file()
    }
    assert copied == {"model.onnx": b"graph", "manifest.json": b"graph", "tokenizer/words.txt": b"a b"}


def test_every_change_of_a_folder_changes_its_fingerprint(tmp_path: Path) -> None:
    folder = make(tmp_path / "source")
    seen = {fingerprint(folder)}
    times = (folder / "model.onnx").stat()
    for change in (
        lambda: (folder / "new").write_text(""),
        lambda: (folder / "new").rename(folder / "renamed"),
        lambda: (folder / "model.onnx").write_bytes(b"graph!"),
        lambda: (folder / "tokenizer" / "words.txt").write_text("b a"),
        lambda: (folder / "renamed").unlink(),
        lambda: os.utime(folder / "model.onnx", ns=(times.st_atime_ns, times.st_mtime_ns)),
    ):
        change()
        now = fingerprint(folder)
        assert now not in seen
        assert fingerprint(folder) == now
        seen.add(now)


@pytest.mark.parametrize("what", ["missing", "dangling", "crowded"])
def test_a_folder_that_cannot_be_copied_says_why(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "source"
    if what != "missing":
        make(folder)
    if what == "dangling":
        (folder / "manifest.json").symlink_to("gone")
    if what == "crowded":
        for number in range(MAX_FILES):
            (folder / f"{number}").touch()
    with pytest.raises(FolderError, match=r"has just gone|more than 1000 files"):
        copy_version(folder, tmp_path / "copy")
