"""Rows of files: what is read, and what claims more than it holds."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from training.importers import rows_file
from training.importers.model import ModelImportError
from training.importers.rows_file import read_rows_file


def npy_claiming(*shape: int) -> bytes:
    """A .npy whose header claims a shape, with eight bytes behind it."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue() + b"\x00" * 8


def zipped(path: Path, content: bytes, times: int = 1) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(times):
            archive.writestr(f"{number}.npy", content)
    return path


def test_rows_are_read_from_json_npz_and_npy(tmp_path: Path) -> None:
    rows = [np.arange(6.0).reshape(3, 2), np.arange(8.0).reshape(4, 2)]
    (tmp_path / "a.json").write_text(json.dumps([row.tolist() for row in rows]))
    (tmp_path / "b.json").write_text(json.dumps({"instances": [{"x": row.tolist()} for row in rows]}))
    np.savez(tmp_path / "c.npz", *rows)
    np.save(tmp_path / "d.npy", np.zeros((3, 6, 2)))
    for name in ("a.json", "c.npz"):
        for found, row in zip(read_rows_file(tmp_path / name, "--example"), rows, strict=True):
            np.testing.assert_array_equal(found, row)
    assert [list(row) for row in read_rows_file(tmp_path / "b.json", "--example")] == [["x"], ["x"]]
    assert [row.shape for row in read_rows_file(tmp_path / "d.npy", "--example")] == [(6, 2)] * 3


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("0.npy", "w") as member:
        for _ in range((rows_file.MAX_BYTES >> 20) + 1):
            member.write(b"\x00" * (1 << 20))
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 20
    with pytest.raises(ModelImportError, match="unpacks to 1 arrays of 257 MB"):
        read_rows_file(tmp_path / "bomb.npz", "--example")


def test_an_array_that_claims_more_than_it_has_takes_no_memory(tmp_path: Path) -> None:
    zipped(tmp_path / "claim.npz", npy_claiming(1 << 40))
    with pytest.raises(ModelImportError, match="claims the shape"):
        read_rows_file(tmp_path / "claim.npz", "--example")
    (tmp_path / "claim.npy").write_bytes(npy_claiming(1 << 40))
    with pytest.raises(ModelImportError, match="--example"):
        read_rows_file(tmp_path / "claim.npy", "--example")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "rows.json", "wb") as file:
        file.truncate(rows_file.MAX_BYTES + 1)
    with pytest.raises(ModelImportError, match="has 256 MB; at most 256 MB are read"):
        read_rows_file(tmp_path / "rows.json", "--example")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b"[" * 100_000),
        ("b.json", b"{}"),
        ("c.json", b"[[1, [2]]]"),
        ("d.npy", b""),
        ("e.npy", b"\x93NUMPY\x01\x00"),
        ("f.npz", b"PK\x03\x04"),
        ("g.npy", b"not an array"),
    ],
)
def test_a_broken_file_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelImportError, match=name):
        read_rows_file(tmp_path / name, "--example")


def test_an_array_of_objects_is_not_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", np.array([object()], dtype=object))
    with pytest.raises(ModelImportError, match="objects"):
        read_rows_file(tmp_path / "objects.npz", "--example")
