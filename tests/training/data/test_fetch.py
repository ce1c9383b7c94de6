"""A set is downloaded whole, resumed, checked, or refused with a reason. The origin is a server on this machine."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl
import pytest

from training.data.fetch import FetchError, fetch, unpack_imdb
from training.data.sets import CATALOGUE, DataSet, Download, File
from training.data.sources import fingerprint

CONTENT = b"unique_id,ds,y\n" + b"".join(b"a,%d,%d\n" % (i, i) for i in range(20_000))


@dataclass
class Origin:
    """What a public server would do, and the requests it got."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    can_resume: bool = True
    breaks_off_at: int | None = None
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def origin() -> Iterator[Origin]:
    state = Origin()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.ranges.append(self.headers["Range"])
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = 0
            if self.headers["Range"] and state.can_resume:
                start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    self.send_error(416)
                    return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : state.breaks_off_at])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        server.shutdown()
        thread.join()


def one_file(origin: Origin, content: bytes = CONTENT) -> DataSet:
    origin.files["/a.csv"] = content
    return DataSet("toy", "", "", (Download(f"{origin.url}/a.csv", (File("toy/a.csv", hashlib.sha256(CONTENT).hexdigest()),)),))


def test_a_set_is_downloaded_with_progress_and_leaves_nothing_else(origin: Origin, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    paths = fetch(one_file(origin), tmp_path, progress=lambda *step: seen.append(step))
    assert paths == [tmp_path / "toy" / "a.csv"]
    assert paths[0].read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "toy").iterdir()] == ["a.csv"]
    assert len(seen) > 1
    assert seen[-1] == ("a.csv", len(CONTENT), len(CONTENT))


def test_what_is_there_and_right_is_left_alone_packed_or_not(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    packed = tmp_path / "toy" / "a.csv.gz"
    packed.write_bytes(gzip.compress(CONTENT))
    assert fetch(one_file(origin), tmp_path) == [packed]
    assert origin.ranges == []


def test_what_is_there_and_wrong_is_replaced(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "a.csv").write_bytes(b"half")
    assert fetch(one_file(origin), tmp_path)[0].read_bytes() == CONTENT


@pytest.mark.parametrize("can_resume", [True, False])
def test_a_broken_download_goes_on_where_it_ended(origin: Origin, tmp_path: Path, can_resume: bool) -> None:
    entry = one_file(origin)
    origin.breaks_off_at, origin.can_resume = 100_000, can_resume
    with pytest.raises(FetchError, match=r"ended after 100,000 of .* run it again"):
        fetch(entry, tmp_path)
    assert not (tmp_path / "toy" / "a.csv").exists()
    origin.breaks_off_at = None
    assert fetch(entry, tmp_path)[0].read_bytes() == CONTENT
    assert origin.ranges == [None, "bytes=100000-"]


def test_a_download_that_was_complete_but_not_yet_checked_is_used(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "a.csv.part").write_bytes(CONTENT)
    assert fetch(one_file(origin), tmp_path)[0].read_bytes() == CONTENT


def test_another_content_is_refused_and_deleted(origin: Origin, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"wrong content for toy/a.csv: expected sha256 [0-9a-f]{64}, got [0-9a-f]{64}"):
        fetch(one_file(origin, b"moved\n"), tmp_path)
    assert list((tmp_path / "toy").iterdir()) == []


def test_a_missing_file_is_refused_with_the_servers_answer(origin: Origin, tmp_path: Path) -> None:
    entry = one_file(origin)
    origin.files.clear()
    with pytest.raises(FetchError, match=r"/a.csv: the server answered 404 Not Found"):
        fetch(entry, tmp_path)


def test_no_network_is_named_as_the_reason(tmp_path: Path) -> None:
    # Port 0 is no port anybody listens on.
    entry = DataSet("toy", "", "", (Download("http://127.0.0.1:0/a.csv", (File("a.csv", "0" * 64),)),))
    with pytest.raises(FetchError, match=r"http://127.0.0.1:0/a.csv: cannot be reached: "):
        fetch(entry, tmp_path)


def reviews_archive() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:

        def add(name: str, content: str) -> None:
            member = tarfile.TarInfo(f"aclImdb/{name}")
            member.size = len(content.encode())
            tar.addfile(member, io.BytesIO(content.encode()))

        add("README", "read me")
        for part in ("test", "train"):
            for mood, rating in (("pos", 9), ("neg", 2)):
                add(f"{part}/urls_{mood}.txt", "".join(f"http://www.imdb.com/title/tt{i}{mood}/usercomments\n" for i in (0, 1)))
                for number in (1, 0):
                    add(f"{part}/{mood}/{number}_{rating}.txt", f"{part} {mood} {number}: café")
        add("train/urls_unsup.txt", "http://www.imdb.com/title/tt7/usercomments\n")
        add("train/unsup/0_0.txt", "no label")
    return packed.getvalue()


def test_the_review_archive_becomes_parquet_in_a_fixed_order(origin: Origin, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(reviews_archive())
    unpack_imdb(archive, tmp_path)
    table = pl.read_parquet(tmp_path / "imdb_train.parquet")
    assert table.columns == ["id", "label", "rating", "movie", "text"]
    assert table["text"].to_list() == [f"train {mood} {number}: café" for mood in ("neg", "pos") for number in (0, 1)]
    assert table["movie"].to_list() == ["tt0neg", "tt1neg", "tt0pos", "tt1pos"]
    assert table["rating"].to_list() == [2, 2, 9, 9]

    unlabelled = pl.read_parquet(tmp_path / "imdb_unsup.parquet")
    assert unlabelled.rows(named=True) == [{"id": 0, "label": -1, "rating": 0, "movie": "tt7", "text": "no label"}]

    files = tuple(
        File(f"imdb/imdb_{part}.parquet", fingerprint((tmp_path / f"imdb_{part}.parquet").read_bytes()))
        for part in ("train", "test")
    )
    origin.files["/a.tar.gz"] = archive.read_bytes()
    paths = fetch(DataSet("toy", "", "", (Download(f"{origin.url}/a.tar.gz", files, unpack="imdb"),)), tmp_path)
    assert pl.read_parquet(paths[0]).equals(table)
    assert sorted(path.name for path in (tmp_path / "imdb").iterdir()) == ["imdb_test.parquet", "imdb_train.parquet"]


def test_an_archive_that_is_none_is_refused(origin: Origin, tmp_path: Path) -> None:
    origin.files["/a.tar.gz"] = b"<html>"
    entry = DataSet("toy", "", "", (Download(f"{origin.url}/a.tar.gz", (File("a.parquet", "0" * 64),), unpack="imdb"),))
    with pytest.raises(FetchError, match="is not the archive it should be"):
        fetch(entry, tmp_path)


@pytest.mark.data
@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: str(entry.name))
def test_the_catalogues_checksums_are_those_of_the_sets(entry: DataSet, data_folder: Path) -> None:
    # Nothing is downloaded: what is there is found right, else there would be a request.
    offline = DataSet(entry.name, "", "", tuple(Download("http://127.0.0.1:0/", d.files) for d in entry.downloads))
    assert len(fetch(offline, data_folder)) == sum(len(download.files) for download in entry.downloads)
