"""Rows from files, within bounds: what a file claims to hold is compared with what it has before memory is taken for it."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy

from training.importers.model import ModelImportError

MAX_BYTES = 256 << 20
MAX_ROWS = 100_000


def read_rows_file(path: Path, option: str) -> list[Any]:
    """Rows of a file: a JSON list, a .npz of one array for each row, or a .npy of rows that are stacked.

    Raises ModelImportError that names the option and the file.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ModelImportError(f"{option}: {path} has {size >> 20} MB; at most {MAX_BYTES >> 20} MB are read")
        if path.suffix == ".json":
            return _read_json(path, option)
        if zipfile.is_zipfile(path):
            _require_small(path, option)
            with np.load(path, allow_pickle=False) as arrays:
                return [arrays[name] for name in arrays.files]
        with path.open("rb") as file:
            if file.read(6) != b"\x93NUMPY":
                raise ModelImportError(f"{option}: {path} is no .json, .npz or .npy file")
        # Mapped, so that a header that claims more than there is takes no memory.
        return list(np.array(np.load(path, allow_pickle=False, mmap_mode="r")))
    except OSError as exc:
        raise ModelImportError(f"{option}: {path}: {exc.strerror or exc}") from exc
    except (ValueError, EOFError, TypeError, RecursionError, SyntaxError, zipfile.BadZipFile, NotImplementedError) as exc:
        raise ModelImportError(f"{option}: {path} cannot be read: {exc or type(exc).__name__}") from exc


def _read_json(path: Path, option: str) -> list[Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = content.get("instances") if isinstance(content, Mapping) else content
    if not isinstance(rows, list):
        raise ModelImportError(f"{option}: {path} must be a list of rows")
    return [_row(row) for row in rows]


def _row(row: Any) -> Any:
    if isinstance(row, Mapping):
        return {name: np.asarray(value) for name, value in row.items()}
    return row if isinstance(row, str) else np.asarray(row)


def _require_small(path: Path, option: str) -> None:
    """Refuse an archive that unpacks to more than is read, or whose arrays are larger than their members."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        if total > MAX_BYTES or len(members) > MAX_ROWS:
            raise ModelImportError(
                f"{option}: {path} unpacks to {len(members)} arrays of {total >> 20} MB; "
                f"at most {MAX_ROWS} of {MAX_BYTES >> 20} MB are read"
            )
        for member in members:
            with archive.open(member) as stream:
                # zipfile's streams are typed for text and bytes alike.
                shape, dtype = _read_header(cast(BinaryIO, stream))
            if math.prod(shape) * dtype.itemsize > member.file_size:
                raise ModelImportError(f'{option}: {path}: "{member.filename}" claims the shape {shape}, and is shorter')


def _read_header(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the npy format")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype
