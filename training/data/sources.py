"""From a recipe's source to bytes or a table: where the file lies, decompression, and whether it is the right content.

Knows neither series nor texts; downloads nothing (`fetch.py` does).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from training.data.builtin import read_builtin
from training.errors import TrainingError
from training.recipe import Source

COMPRESSIONS = ("", ".xz", ".gz")


class DataError(TrainingError):
    """Data cannot be used: names the file, what is wrong with it, and the remedy where there is one.

    `location` is the recipe's key at fault, as ("data", "train", 0, "text"); `option` is its last part where the rest is
    not known yet (see `with_location`).
    """

    def __init__(self, message: str, *, option: str = "", location: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.option = option
        self.location = location


@contextmanager
def with_location(*location: str | int) -> Iterator[None]:
    """A DataError raised inside gets this table of the recipe as its location."""
    try:
        yield
    except DataError as exc:
        exc.location = exc.location or (*location, *([exc.option] if exc.option else []))
        raise


@dataclass(frozen=True)
class Content:
    """One source as found on disk: its bytes after decompression, and the sha256 that identifies them."""

    source: Source
    name: str
    payload: bytes
    sha256: str

    @property
    def is_parquet(self) -> bool:
        return self.payload[:4] == b"PAR1"

    def table(self) -> pl.DataFrame:
        """The content as a table with a header. Raises DataError if it is none."""
        try:
            if self.is_parquet:
                return pl.read_parquet(io.BytesIO(self.payload))
            separator = "\t" if ".tsv" in self.name else ","
            # A tab-separated text may hold a lone quotation mark: there, quotes are ordinary characters.
            quote = None if separator == "\t" else '"'
            return pl.read_csv(
                io.BytesIO(self.payload), separator=separator, quote_char=quote, infer_schema_length=None, encoding="utf8-lossy"
            )
        except (pl.exceptions.PolarsError, ValueError) as exc:
            raise DataError(f"{self.name}: cannot be read as a table: {exc}", option="path") from exc


def read_table(source: Source, folder: Path | None, contents: list[Content]) -> tuple[pl.DataFrame, str]:
    """The table of a source and the name of its file; what was read from disk is appended to `contents`. Raises DataError."""
    if source.builtin_set is not None:
        return read_builtin(source.builtin_set), source.builtin_set
    content = read(source, folder)
    contents.append(content)
    return content.table(), content.name


def read(source: Source, folder: Path | None) -> Content:
    """Find, decompress and check one source. `folder` is where $SLUICE_DATA points, or None.

    Raises DataError: no such file (with its origin and the command that fetches it), empty, broken, or another content
    than the one with the recipe's sha256.
    """
    path = locate(source, folder)
    try:
        raw = path.read_bytes()
        payload = decompress(raw, path.suffix)
    except (OSError, lzma.LZMAError, zlib.error, EOFError) as exc:
        raise DataError(f"{path}: cannot be read: {exc}", option="path") from exc
    if not payload.strip():
        raise DataError(f"{path}: is empty", option="path")
    content = Content(source, path.name, payload, fingerprint(payload))
    if source.sha256 and content.sha256 != source.sha256:
        raise DataError(
            f"{path}: is not the content that the recipe names: expected sha256 {source.sha256}, found {content.sha256}. "
            "If this file is meant, give its sha256 in the recipe, or an empty one",
            option="sha256",
        )
    return content


def locate(source: Source, folder: Path | None) -> Path:
    """The file of a source, or the one there with .xz or .gz added: in the data folder, or else in the working directory.

    Raises DataError if there is none.
    """
    path = Path(source.path)
    places = [folder / path, path] if folder is not None else [path]
    for place in places:
        for compression in COMPRESSIONS:
            candidate = place.with_name(place.name + compression)
            if candidate.is_file():
                return candidate
    unset = " here, and $SLUICE_DATA is not set" if folder is None and not path.is_absolute() else ""
    origin = f". Its origin: {source.origin}" if source.origin else ""
    fetch = f". Fetch it: sluice data fetch {source.catalogue}" if source.catalogue else ""
    raise DataError(f"no file {places[0]} (nor .xz, .gz){unset}{origin}{fetch}", option="path")


def decompress(raw: bytes, suffix: str) -> bytes:
    """The content of a .xz or .gz file's bytes; other bytes as they are."""
    if suffix == ".xz":
        return lzma.decompress(raw)
    if suffix == ".gz":
        return gzip.decompress(raw)
    return raw


def fingerprint(payload: bytes) -> str:
    """The sha256 that identifies a content however it is packed.

    Of text formats, the bytes after decompression. A parquet file's bytes depend on the library that wrote it, so there
    it is taken of the columns: name and values as text, separated by control characters that no text has.
    """
    if payload[:4] != b"PAR1":
        return hashlib.sha256(payload).hexdigest()
    digest = hashlib.sha256()
    for column in pl.read_parquet(io.BytesIO(payload)):
        values = column.cast(pl.String).fill_null("\x00")
        digest.update(f"{column.name}\x1e".encode())
        digest.update("\x1f".join(values.to_list()).encode())
        digest.update(b"\x1e")
    return digest.hexdigest()
