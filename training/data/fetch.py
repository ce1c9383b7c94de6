"""Downloads a data set from its public origin: with progress, resumed where it broke off, accepted by its sha256 alone.

Files appear under their final name complete and checked, or not at all.
"""

from __future__ import annotations

import http.client
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import polars as pl

from training.data.sets import DataSet, Download, File
from training.data.sources import COMPRESSIONS, decompress, fingerprint
from training.errors import TrainingError

BLOCK_BYTES = 1 << 16

Progress = Callable[[str, int, int | None], None]  # name, bytes so far, bytes in all where the server sends that


class FetchError(TrainingError):
    """A set cannot be downloaded: names the address and the reason."""


def fetch(entry: DataSet, folder: Path, *, progress: Progress | None = None, timeout_s: float = 30.0) -> list[Path]:
    """Bring all files of a set under `folder`; those that are there and right are left alone. Returns their paths.

    Raises FetchError: no connection, an answer other than success, another content than the catalogue names (which is
    deleted), or a folder that cannot be written.
    """
    paths: list[Path] = []
    try:
        for download in entry.downloads:
            present = [_present(folder, file) for file in download.files]
            if None in present:
                _bring(download, folder, progress or _silent, timeout_s)
                present = [folder / file.path for file in download.files]
            paths.extend(path for path in present if path is not None)
    except OSError as exc:
        raise FetchError(f"{folder}: cannot be written: {exc}") from exc
    return paths


def _silent(name: str, done: int, total: int | None) -> None:
    pass


def _present(folder: Path, file: File) -> Path | None:
    for compression in COMPRESSIONS:
        path = folder / (file.path + compression)
        if path.is_file() and fingerprint(decompress(path.read_bytes(), path.suffix)) == file.sha256:
            return path
    return None


def _bring(download: Download, folder: Path, progress: Progress, timeout_s: float) -> None:
    first = folder / download.files[0].path
    first.parent.mkdir(parents=True, exist_ok=True)
    name = download.url.rsplit("/", 1)[-1]
    partial = first.parent / f"{name}.part"
    _download(download.url, partial, progress, timeout_s)
    with tempfile.TemporaryDirectory(dir=first.parent, prefix=".unpack-") as temporary:
        if download.unpack == "imdb":
            try:
                unpack_imdb(partial, Path(temporary))
            except (tarfile.TarError, EOFError, OSError, KeyError, ValueError) as exc:
                partial.unlink()
                raise FetchError(f"{download.url}: is not the archive it should be: {exc}") from exc
        else:
            (Path(temporary) / first.name).write_bytes(partial.read_bytes())
        for file in download.files:
            found = fingerprint((Path(temporary) / Path(file.path).name).read_bytes())
            if found != file.sha256:
                partial.unlink()
                raise FetchError(f"{download.url}: wrong content for {file.path}: expected sha256 {file.sha256}, got {found}")
        for file in download.files:
            (Path(temporary) / Path(file.path).name).replace(folder / file.path)
    partial.unlink()


def _download(url: str, partial: Path, progress: Progress, timeout_s: float) -> None:
    """Write the body of `url` to `partial`, going on after the bytes that are there already."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "sluice"} | ({"Range": f"bytes={have}-"} if have else {}))
    name = url.rsplit("/", 1)[-1]
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                have = 0  # this server does not resume: from the start
            length = response.headers.get("Content-Length")
            total = have + int(length) if length else None
            with partial.open("ab" if have else "wb") as file:
                while block := response.read(BLOCK_BYTES):
                    file.write(block)
                    have += len(block)
                    progress(name, have, total)
        if total is not None and have < total:
            raise FetchError(f"{url}: the connection ended after {have:,} of {total:,} bytes; run it again to go on from there")
    except urllib.error.HTTPError as exc:
        with exc:
            if exc.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
                return  # complete already; its checksum decides
        raise FetchError(f"{url}: the server answered {exc.code} {exc.reason}") from exc
    except (urllib.error.URLError, http.client.HTTPException, OSError) as exc:
        reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
        raise FetchError(f"{url}: cannot be reached: {reason}") from exc


def unpack_imdb(archive: Path, folder: Path) -> None:
    """aclImdb's folders of small files as imdb_train, imdb_test and imdb_unsup.parquet: id, label, rating, movie, text.

    Rows are ordered by label, then id. The film comes from the lists of addresses, line `id` of each.
    """
    rows: dict[str, list[tuple[int, int, int, str]]] = {"train": [], "test": [], "unsup": []}
    films: dict[tuple[str, int], list[str]] = {}
    moods = {"neg": 0, "pos": 1, "unsup": -1}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            parts = Path(member.name).parts
            if not member.isfile() or len(parts) < 3 or parts[-3 if len(parts) > 3 else -2] not in rows:
                continue
            file = tar.extractfile(member)
            assert file is not None
            content = file.read().decode("utf-8")
            mood = parts[2].removeprefix("urls_").removesuffix(".txt")
            part = "unsup" if mood == "unsup" else parts[1]
            if len(parts) == 3 and mood in moods and parts[2] != mood:
                titles = [line.split("/title/")[1].split("/")[0] for line in content.split()]
                films[part, moods[mood]] = titles
            elif len(parts) == 4 and mood in moods:
                number, rating = Path(parts[3]).stem.split("_")
                rows[part].append((moods[mood], int(number), int(rating), content.strip()))
    for part, found in rows.items():
        found.sort()
        pl.DataFrame(
            {
                "id": pl.Series([row[1] for row in found], dtype=pl.Int32),
                "label": pl.Series([row[0] for row in found], dtype=pl.Int8),
                "rating": pl.Series([row[2] for row in found], dtype=pl.Int8),
                "movie": pl.Series([films[part, row[0]][row[1]] for row in found], dtype=pl.String),
                "text": pl.Series([row[3] for row in found], dtype=pl.String),
            }
        ).write_parquet(folder / f"imdb_{part}.parquet", compression="zstd")
