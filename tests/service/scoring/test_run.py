"""Whole files through a model: the server's answers come out, what cannot be scored is named by row, and a killed run goes on."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from service.errors import InvalidInput, MalformedRequest, ServiceError, StartError
from service.models.folder import ModelOptions
from service.models.model import Model
from service.scoring.parts import Parts
from service.scoring.run import Summary, TooManyRejected, find_model, score_file
from service.scoring.sources import ChunkSizes
from service.tasks.tables import TableError, TableOptions
from tests.folders import write_forecast_folder, write_tensor_folder, write_text_folder
from tests.serving import ROOT, client_of

Rows = list[dict[str, Any]]
FORMATS = ("parquet", "csv", "tsv", "ndjson", "csv.gz", "ndjson.gz")
SMALL = ChunkSizes(rows=7, large_rows=3, block_bytes=300)
"""So that series, and their problems, lie across chunks."""
KILLED = """
import os, sys
from pathlib import Path
from service.models.folder import ModelOptions
from service.scoring.sources import ChunkSizes
from service.scoring.run import find_model, score_file
models, source, target = map(Path, sys.argv[1:])
calls = []
def show(*_):
    calls.append(None)
    if len(calls) == 4:
        os._exit(9)
model = find_model("toy-forecast", [models], ModelOptions("cpu"))
score_file(model, source, target, show=show, commit_s=0.0, sizes=ChunkSizes(rows=7, block_bytes=300))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_forecast_folder(folder, min_length=4, context_length=12, frequencies=("H",), quantiles=(0.1, 0.5, 0.9), horizon=3)
    write_forecast_folder(folder, "toy-months", min_length=2, context_length=12, frequencies=("M",), quantiles=(), horizon=3)
    write_forecast_folder(folder, "toy-two", features=("a", "b"), targets=("b",), frequencies=("D",), horizon=2)
    write_text_folder(folder)
    write_tensor_folder(folder)
    return folder


@cache
def load(models: Path, name: str = "toy-forecast") -> Model:
    return find_model(name, [models], ModelOptions("cpu"))


def series(lengths: Sequence[int], *, start: str = "2024-01-01T00:00:00", step: str = "h", seed: int = 0) -> Rows:
    """So many series in the long form."""
    random = np.random.default_rng(seed)
    rows: Rows = []
    for number, length in enumerate(lengths):
        times = np.datetime64(start, "s") + np.arange(length).astype(f"m8[{step}]")
        values = random.normal(10, 3, length).round(3).tolist()
        rows += [{"unique_id": f"s{number}", "ds": str(time), "y": value} for time, value in zip(times, values, strict=True)]
    return rows


def write(path: Path, rows: Rows) -> Path:
    """A file of these rows in the format of its name."""
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    kind = path.name.split(".")[1]
    if kind == "parquet":
        table = pa.Table.from_pylist(rows)
        if "ds" in table.column_names and isinstance(rows[0]["ds"], str):
            unit = pa.timestamp("us") if "T" in rows[0]["ds"] else pa.date32()
            table = table.set_column(table.column_names.index("ds"), "ds", table.column("ds").cast(unit))
        pq.write_table(table, path)
    elif kind == "ndjson":
        with opened(path, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        delimiter = "\t" if kind == "tsv" else ","
        table = pa.table({name: [as_cell(row.get(name)) for row in rows] for name in rows[0]})
        with opened(path, "wb") as file:
            pa.csv.write_csv(table, file, pa.csv.WriteOptions(delimiter=delimiter))
    return path


def as_cell(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def read(path: Path) -> Rows:
    """The rows of a file, times as texts."""
    if path.suffix == ".ndjson":
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    if path.suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
        return [
            {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in row.items()} for row in rows
        ]
    convert = pa.csv.ConvertOptions(column_types={"ds": pa.string(), "unique_id": pa.string()})
    parse = pa.csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
    found: Rows = pa.csv.read_csv(path, convert_options=convert, parse_options=parse).to_pylist()
    return found


def served(models: Path, endpoint: str, body: dict[str, Any]) -> list[Any]:
    async def post() -> list[Any]:
        async with client_of(models) as client:
            answer = await client.post(endpoint, json=body)
            assert answer.status_code == 200, answer.text
            predictions: list[Any] = answer.json()["predictions"]
            return predictions

    return asyncio.run(post())


def rejected(output: Path) -> Rows:
    path = output.with_name(f"{output.name}.rejected.ndjson")
    return read(path) if path.exists() else []


# ------------------------------------------------------------------------------------------------------------ forecasts


@pytest.mark.parametrize(
    "parameters", [{}, {"horizon": 8, "quantiles": [0.2, 0.5]}, {"quantiles": [], "horizon": 2}], ids=["usual", "beyond", "plain"]
)
def test_forecasts_of_a_file_are_the_served_ones(models: Path, tmp_path: Path, parameters: dict[str, Any]) -> None:
    rows = series([5, 30, 4, 12, 13])
    rows[7]["y"] = rows[20]["y"] = None
    names = sorted({row["unique_id"] for row in rows})
    instances = [
        {"history": [row["y"] for row in rows if row["unique_id"] == name], "start": "2024-01-01T00:00:00"} for name in names
    ]
    body = {"model": "toy-forecast", "instances": instances, "parameters": parameters | {"frequency": "H"}}
    answers = served(models, "/predict/forecast", body)
    for kind in FORMATS:
        source, target = write(tmp_path / f"in.{kind}", rows), tmp_path / f"out-{kind[:3]}.{kind.removesuffix('.gz')}"
        summary = score_file(load(models), source, target, TableOptions(parameters=parameters), sizes=SMALL, overwrite=True)
        assert (summary.num_records, summary.num_rejected, rejected(target)) == (5, 0, []), kind
        found = read(target)
        for name, answer in zip(names, answers, strict=True):
            own = [row for row in found if row["unique_id"] == name]
            assert [row["ds"] for row in own] == answer["timestamps"], kind
            np.testing.assert_allclose([row["forecast"] for row in own], answer["forecast"], rtol=1e-5, atol=1e-5)
            assert {key.removeprefix("q") for key in own[0]} - {"unique_id", "ds", "forecast"} == set(answer.get("quantiles", {}))
            for level, values in answer.get("quantiles", {}).items():
                np.testing.assert_allclose([row[f"q{level}"] for row in own], values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [9, 12, 40])
def test_series_that_lie_side_by_side_are_forecast_as_each_alone(models: Path, tmp_path: Path, length: int) -> None:
    rows = series([length] * 700)
    for number, bad in ((3, None), (40, "many"), (699, None)):
        rows[number * length + length // 2]["y"] = bad
    names = [f"s{number}" for number in range(700) if number != 40]
    whole, alone = tmp_path / "whole.ndjson", tmp_path / "alone.ndjson"
    summary = score_file(load(models), write(tmp_path / "in.ndjson", rows), whole)
    assert (summary.num_records, summary.num_rejected) == (699, 1)
    found = read(whole)
    assert [row["unique_id"] for row in found] == [name for name in names for _ in range(3)]
    for number in (0, 3, 41, 255, 511, 512, 698, 699):
        own = rows[number * length : (number + 1) * length]
        score_file(load(models), write(tmp_path / "one.ndjson", own), alone, overwrite=True)
        for expected, row in zip(read(alone), [row for row in found if row["unique_id"] == f"s{number}"], strict=True):
            assert row["ds"] == expected["ds"]
            values = [row[name] for name in ("forecast", "q0.1", "q0.5", "q0.9")]
            np.testing.assert_allclose(values, [expected[name] for name in ("forecast", "q0.1", "q0.5", "q0.9")], rtol=1e-5)


@pytest.mark.parametrize(
    ("start", "num", "frequency"), [("2023-01-31", 3, "M"), ("2023-02-28", 4, "ME"), ("2023-11-15", 5, "M")], ids=str
)
def test_months_step_as_the_server_steps(models: Path, tmp_path: Path, start: str, num: int, frequency: str) -> None:
    def forecast_times(num_known: int, horizon: int) -> list[str]:
        instance = {"history": [1.0] * num_known, "start": start, "frequency": frequency, "horizon": horizon}
        times: list[str] = served(models, "/predict", {"model": "toy-months", "instances": [instance]})[0]["timestamps"]
        return times

    # The second time of the history is none that the model forecasts.
    second = str(np.datetime64(start[:7], "M") + 1)
    second += "-31" if frequency == "ME" else f"-{min(int(start[8:]), 28):02}"
    times = [start, second if num > 1 else "", *forecast_times(2, num)][:num]
    rows: Rows = [{"unique_id": "m", "ds": time, "y": 1.0} for time in times]
    target = tmp_path / "out.ndjson"
    score_file(load(models, "toy-months"), write(tmp_path / "in.csv", rows), target, TableOptions(parameters={"horizon": 9}))
    assert [row["ds"] for row in read(target)] == forecast_times(num, 9)


def test_several_features_are_columns_of_their_names(models: Path, tmp_path: Path) -> None:
    rows = [{"unique_id": "s", "ds": f"2024-01-{day:02}", "a": day / 10, "b": 1 - day / 7} for day in range(1, 9)]
    target = tmp_path / "out.csv"
    score_file(load(models, "toy-two"), write(tmp_path / "in.parquet", rows), target)
    instance = {"history": [[row["a"], row["b"]] for row in rows]}
    (answer,) = served(models, "/predict", {"model": "toy-two", "instances": [instance]})
    found = read(target)
    assert [row["ds"] for row in found] == ["2024-01-09", "2024-01-10"]
    np.testing.assert_allclose([row["forecast"] for row in found], np.ravel(answer["forecast"]), rtol=1e-5)


def test_columns_may_have_other_names_and_times_may_be_numbers(models: Path, tmp_path: Path) -> None:
    rows: Rows = [{"store": 7, "week": step, "sales": float(step)} for step in range(5, 12)]
    columns = {"unique_id": "store", "ds": "week", "y": "sales"}
    for kind in ("parquet", "csv", "ndjson"):
        target = tmp_path / f"{kind}.ndjson"
        score_file(load(models), write(tmp_path / f"in.{kind}", rows), target, TableOptions(columns))
        assert [(row["store"], row["week"]) for row in read(target)] == [("7", 12), ("7", 13), ("7", 14)], kind


# ------------------------------------------------------------------------------------------------------------ rows


@pytest.mark.parametrize("name", ["parquet", "csv", "ndjson"])
def test_texts_of_a_file_are_classified_as_the_server_does(models: Path, tmp_path: Path, name: str) -> None:
    texts = ["a good film", "bad", 'a "quoted", text\nof two lines', "good " * 30, "a bad bad film", "NA", "null"]
    rows: Rows = [{"id": number, "review": text} for number, text in enumerate(texts)]
    source, target = write(tmp_path / f"in.{name}", rows), tmp_path / f"out.{name}"
    score_file(load(models, "toy-sentiment"), source, target, TableOptions({"text": "review"}, keep=["id"]), sizes=SMALL)
    answers = served(models, "/predict", {"model": "toy-sentiment", "instances": texts})
    found = read(target)
    assert [row["row"] for row in found] == list(range(len(texts)))
    assert [int(row["id"]) for row in found] == list(range(len(texts)))
    assert [row["label"] for row in found] == [answer["label"] for answer in answers]
    assert [bool(row["truncated"]) for row in found] == [answer.get("truncated", False) for answer in answers]
    for label in ("negative", "positive"):
        expected = [answer["probabilities"][label] for answer in answers]
        np.testing.assert_allclose([row[f"p({label})"] for row in found], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["parquet", "csv", "ndjson"])
def test_rows_of_tensors_are_columns_of_lists(models: Path, tmp_path: Path, name: str) -> None:
    values = [np.random.default_rng(length).normal(size=(length, 2)).round(3).tolist() for length in (2, 5, 1, 3)]
    target = tmp_path / f"out.{name}"
    score_file(
        load(models, "toy-tensor"), write(tmp_path / f"in.{name}", [{"x": value} for value in values]), target, sizes=SMALL
    )
    answers = served(models, "/predict", {"model": "toy-tensor", "instances": values})
    for row, answer in zip(read(target), answers, strict=True):
        found = json.loads(row["y"]) if isinstance(row["y"], str) else row["y"]
        np.testing.assert_allclose(found, answer, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------ bad input


def changed(change: Callable[[Rows], object]) -> Rows:
    """Three series of eight rows, changed."""
    rows = series([8, 8, 8])
    change(rows)
    return rows


DAY = "2024-01-01T"
NO_NUMBER = "row 9: y: expected a finite number or null, got"
REJECTED: dict[str, tuple[Callable[[Rows], object], str]] = {
    "text": (lambda rows: rows[9].update(y="many"), f'{NO_NUMBER} "many"'),
    "infinite": (lambda rows: rows[9].update(y="inf"), f"{NO_NUMBER} inf"),
    "too large": (lambda rows: rows[9].update(y="1e39"), f"{NO_NUMBER} 1e+39 (beyond float32)"),
    "duplicate": (lambda rows: rows[9].update(ds=rows[8]["ds"]), f"row 9: ds: {DAY}00:00:00 is there twice"),
    "step": (lambda rows: rows.pop(10), f"row 10: ds: expected one step of H after {DAY}01:00:00, got {DAY}03:00:00"),
    "order": (
        lambda rows: rows[12].update(ds="2023-12-31T00:00:00"),
        f"row 12: ds: 2023-12-31T00:00:00 comes after {DAY}03:00:00: the times of a series have to ascend",
    ),
    "time": (lambda rows: rows[9].update(ds="soon"), 'row 9: ds: expected a time, got "soon"'),
    "no time": (lambda rows: rows[9].update(ds=None), "row 9: ds: expected a time, got null"),
    "no name": (
        lambda rows: [row.update(unique_id=None) for row in rows[8:16]],
        "unique_id: expected a name, got null",
    ),
    "short": (lambda rows: rows.__delitem__(slice(10, 16)), "history: expected at least 4 steps, got 2"),
    "gaps only": (
        lambda rows: [row.update(y=None) for row in rows[8:16]],
        "history: has no number among the last 8 steps, expected at least one",
    ),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in REJECTED for kind in ("csv", "ndjson") if kind == "csv" or name not in ("infinite", "too large")],
)
@pytest.mark.parametrize("sizes", [None, SMALL], ids=["whole", "chunks"])
def test_a_bad_series_is_rejected_by_row_and_the_others_are_scored(
    models: Path, tmp_path: Path, name: str, kind: str, sizes: ChunkSizes | None
) -> None:
    change, reason = REJECTED[name]
    source, target = write(tmp_path / f"in.{kind}", changed(change)), tmp_path / "out.csv"
    summary = score_file(load(models), source, target, sizes=sizes)
    assert (summary.num_records, summary.num_rejected) == (2, 1)
    (entry,) = rejected(target)
    assert (entry["row"], entry["unique_id"], entry["reason"]) == (8, None if name == "no name" else "s1", reason)
    assert {each["unique_id"] for each in read(target)} == {"s0", "s2"}


@pytest.mark.parametrize(
    ("rows", "reasons"),
    [
        (["good film", None, "bad"], {1: "expected a string, got null"}),
        (["good", "x" * 100_001, "bad"], {1: "the text has 100001 characters, expected at most 100000"}),
        ([7, None, 7.5], {0: "expected a string, got 7", 1: "expected a string, got null", 2: "expected a string, got 7.5"}),
    ],
)
def test_a_bad_row_is_rejected_and_the_others_are_scored(
    models: Path, tmp_path: Path, rows: list[object], reasons: dict[int, str]
) -> None:
    target = tmp_path / "out.ndjson"
    source = write(tmp_path / "in.ndjson", [{"text": value} for value in rows])
    score_file(load(models, "toy-sentiment"), source, target)
    assert {entry["row"]: entry["reason"] for entry in rejected(target)} == reasons
    there = [row["row"] for row in read(target)] if target.exists() else []
    assert there == [number for number in range(len(rows)) if number not in reasons]


@pytest.mark.parametrize("sizes", [None, SMALL], ids=["whole", "chunks"])
def test_lines_that_are_no_rows_are_rejected_by_number(models: Path, tmp_path: Path, sizes: ChunkSizes | None) -> None:
    (tmp_path / "in.csv").write_text("text,n\ngood,1\nbad\n" + "film,2\n" * 40 + "a,b,c\ngood,3\n")
    target = tmp_path / "out.ndjson"
    score_file(load(models, "toy-sentiment"), tmp_path / "in.csv", target, sizes=sizes)
    assert [(entry["row"], entry["reason"]) for entry in rejected(target)] == [
        (1, "expected 2 columns, got 1"),
        (42, "expected 2 columns, got 3"),
    ]
    assert [row["row"] for row in read(target)] == [0, *range(2, 42), 43]
    (tmp_path / "in.ndjson").write_bytes(b'{"text": "good"}\n{"text"\n\n[1]\n{"text": "\xff"}\n{"text": "bad"}\n')
    target = tmp_path / "other.ndjson"
    score_file(load(models, "toy-sentiment"), tmp_path / "in.ndjson", target, sizes=sizes)
    assert [entry["row"] for entry in rejected(target)] == [1, 2, 3]
    assert [row["row"] for row in read(target)] == [0, 4]


def test_what_a_line_holds_does_not_depend_on_the_other_lines(models: Path, tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in series([8, 8, 8])]
    lines[3] = json.dumps(json.loads(lines[3]) | {"y": float("nan")})
    lines[11:13] = ["".join(lines[11:13])]
    found = []
    for number, last in enumerate(("", "{")):  # with one that is no JSON the lines are read one by one
        source, target = tmp_path / f"{number}.ndjson", tmp_path / f"out{number}.ndjson"
        source.write_text("\n".join([*lines, last]))
        score_file(load(models), source, target)
        found.append((read(target), [entry for entry in rejected(target) if entry["row"] < len(lines)]))
    assert found[0] == found[1]
    predictions, rejections = found[0]
    assert {row["unique_id"] for row in predictions} == {"s0", "s2"}
    assert [entry["row"] for entry in rejections] == [8, 11]


def test_a_bad_file_is_refused_as_a_whole(models: Path, tmp_path: Path) -> None:
    rows = series([8, 8])
    good = write(tmp_path / "good.parquet", rows).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(good[: len(good) // 2])
    (tmp_path / "none.parquet").write_bytes(b"")
    (tmp_path / "latin.csv").write_bytes("unique_id,ds,y\nÄpfel,2024-01-01T00:00:00,1\n".encode("latin-1"))
    (tmp_path / "later.csv").write_bytes(
        b"unique_id,ds,y\n" + b"a,2024-01-01T00:00:00,1\n" * 999 + b"\xc4,2024-01-01T00:00:00,1\n"
    )
    (tmp_path / "header.csv").write_bytes("ünique_id,ds,y\n".encode("utf-16"))
    (tmp_path / "twice.csv").write_text("unique_id,ds,y,y\na,2024-01-01T00:00:00,1,2\n")
    (tmp_path / "list.ndjson").write_text("[1]\n")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"unique_id,ds,y\n" + b"a,2024-01-01T00:00:00,1\n" * 9999)[:60])
    write(tmp_path / "missing.csv", [{"unique_id": "a", "y": 1.0}])
    write(tmp_path / "missing.ndjson", [{"unique_id": "a", "y": 1.0}])
    write(tmp_path / "missing.parquet", [{"unique_id": "a", "y": 1.0}])
    write(tmp_path / "apart.csv", rows[:4] + rows[8:] + rows[4:8])
    write(tmp_path / "dates.csv", [{"unique_id": "a", "ds": "2024-01-01", "y": 1.0}])
    refusals = {
        "cut.parquet": "it is no parquet file, or not a whole one",
        "none.parquet": "it is no parquet file, or not a whole one",
        "latin.csv": "no text in UTF-8",
        "later.csv": "invalid UTF8",
        "header.csv": "no text in UTF-8",
        "twice.csv": 'column "y" is there twice',
        "list.ndjson": "its first line is no object",
        "cut.csv.gz": "cannot be read",
        "missing.csv": 'there is no column "ds"; the columns are "unique_id", "y"',
        "missing.ndjson": 'there is no column "ds"',
        "missing.parquet": 'there is no column "ds"',
        "apart.csv": 'row 12: series "s0" was there before: sort the file by unique_id and ds',
        "dates.csv": 'column "ds" holds dates, steps of the frequency H lie within a day',
        "absent.csv": "there is no file",
        "table.xlsx": "expected a name that ends in",
    }
    model = load(models)
    for name, words in refusals.items():
        with pytest.raises(TableError) as caught:
            score_file(model, tmp_path / name, tmp_path / "out.csv")
        assert words in str(caught.value), name
        assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (TableOptions({"text": "y"}), TableError, 'there is no column "text" to be named'),
        (TableOptions(keep=["y"]), TableError, "nothing to keep"),
        (TableOptions(parameters={"horizon": 0}), InvalidInput, "horizon: expected 1 to 30 steps"),
        (TableOptions(parameters={"level": 1}), MalformedRequest, 'unknown "level"'),
    ],
    ids=["column", "keep", "horizon", "parameter"],
)
def test_options_that_fit_no_such_model_are_refused(
    models: Path, tmp_path: Path, options: TableOptions, error: type[ServiceError], words: str
) -> None:
    with pytest.raises(error, match=words):
        score_file(load(models), write(tmp_path / "in.csv", series([5])), tmp_path / "out.csv", options)


def test_a_run_stops_where_more_are_rejected_than_allowed(models: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", series([8, 2, 8, 2, 2]))
    with pytest.raises(TooManyRejected, match="expected at least 4 steps, got 2"):
        score_file(load(models), source, tmp_path / "out.csv", max_rejected=2)
    assert score_file(load(models), source, tmp_path / "out.csv", max_rejected=3).num_rejected == 3


# ------------------------------------------------------------------------------------------------------------ going on


@pytest.mark.parametrize("kind", ["parquet", "csv", "ndjson"])
def test_a_killed_run_goes_on_and_ends_with_the_same_output(models: Path, tmp_path: Path, kind: str) -> None:
    rows = series([6, 5, 3, 9, 4, 8, 2, 7, 5, 4, 6])
    source, target = write(tmp_path / f"in.{kind}", rows), tmp_path / f"out.{kind}"
    command = [sys.executable, "-c", KILLED, str(models), str(source), str(target)]
    assert subprocess.run(command, cwd=ROOT, check=False, capture_output=True, timeout=120).returncode == 9
    assert not target.exists()
    journal = json.loads((tmp_path / f"out.{kind}.parts" / "journal.json").read_bytes())
    assert 0 < journal["num_records"] < 9
    summary = score_file(load(models), source, target, sizes=SMALL)
    assert summary.is_resumed
    assert (summary.num_records, summary.num_rejected) == (9, 2)
    whole = tmp_path / f"whole.{kind}"
    score_file(load(models), source, whole)
    assert read(target) == read(whole)
    assert rejected(target) == rejected(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [source.name, *(f"{name}{tail}" for name in (target.name, whole.name) for tail in ("", ".rejected.ndjson"))]
    )


@pytest.mark.parametrize("num_batches", [1, 2, 3])
def test_a_bad_line_in_an_unfinished_series_does_not_lose_the_series(models: Path, tmp_path: Path, num_batches: int) -> None:
    lines = ["unique_id,ds,y", *(f"s{n},2024-01-01T{h:02}:00:00,1.5" for n in range(3) for h in range(16))]
    lines.insert(20, "broken")
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("\n".join(lines))

    calls: list[None] = []

    def interrupt(*_: object) -> None:
        calls.append(None)
        if len(calls) == num_batches:
            raise KeyboardInterrupt

    model, sizes = load(models), ChunkSizes(block_bytes=120)
    with pytest.raises(KeyboardInterrupt):
        score_file(model, source, target, show=interrupt, commit_s=0.0, sizes=sizes)
    summary: Summary = score_file(model, source, target, sizes=sizes)
    assert (summary.num_records, summary.num_rejected) == (3, 1)
    assert [row["unique_id"] for row in read(target)] == [name for name in ("s0", "s1", "s2") for _ in range(3)]


def test_an_unfinished_run_of_another_input_is_not_gone_on_with(models: Path, tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.csv", series([6, 5, 9], seed=1)), tmp_path / "out.csv"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_file(load(models), source, target, show=interrupt, commit_s=0.0)
    write(source, series([8, 8]))
    summary = score_file(load(models), source, target)
    assert not summary.is_resumed
    assert {row["unique_id"] for row in read(target)} == {"s0", "s1"}


def test_an_output_that_is_there_is_kept_unless_it_may_be_replaced(models: Path, tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.csv", series([8])), tmp_path / "out.csv"
    target.write_text("mine")
    with pytest.raises(TableError, match="is there already"):
        score_file(load(models), source, target)
    assert target.read_text() == "mine"
    score_file(load(models), source, target, overwrite=True)
    assert len(read(target)) == 3


def test_a_run_never_replaces_or_removes_its_input(models: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", series([8]))
    content = source.read_bytes()
    (tmp_path / "link.csv").symlink_to(source)
    for target in (source, tmp_path / "link.csv"):
        with pytest.raises(TableError, match="is the input"):
            score_file(load(models), source, target, overwrite=True)
    rejections = tmp_path / "out.csv.rejected.ndjson"
    rejections.write_text("".join(json.dumps(row) + "\n" for row in series([8])))
    with pytest.raises(TableError, match="is the input"):
        score_file(load(models), rejections, tmp_path / "out.csv", overwrite=True)
    (tmp_path / "new.csv.parts").mkdir()
    inner = write(tmp_path / "new.csv.parts" / "in.csv", series([8]))
    with pytest.raises(TableError, match="which is for what is unfinished"):
        score_file(load(models), inner, tmp_path / "new.csv")
    assert source.read_bytes() == content
    assert len(read(rejections)) == 8
    assert len(read(inner)) == 8


def test_a_folder_of_another_origin_in_the_place_of_the_parts_is_kept(models: Path, tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.csv", series([8])), tmp_path / "out.csv"
    folder = tmp_path / "out.csv.parts"
    (folder / "part-0").mkdir(parents=True)
    with pytest.raises(TableError, match="is in the way: part-0"):
        score_file(load(models), source, target)
    (folder / "part-0").rmdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(TableError, match=r"is in the way: thesis\.txt"):
        score_file(load(models), source, target)
    assert (folder / "thesis.txt").read_text() == "mine"
    target.mkdir()
    with pytest.raises(TableError, match="is a folder"):
        score_file(load(models), source, target, overwrite=True)


def test_names_of_series_may_be_string_views(models: Path, tmp_path: Path) -> None:
    rows = series([8, 8])
    table = pa.Table.from_pylist(rows)
    pq.write_table(
        table.set_column(0, "unique_id", pa.array([row["unique_id"] for row in rows], pa.string_view())), tmp_path / "v.parquet"
    )
    pq.write_table(table, tmp_path / "s.parquet")
    for name in ("v", "s"):
        score_file(load(models), tmp_path / f"{name}.parquet", tmp_path / f"{name}.ndjson")
    assert read(tmp_path / "v.ndjson") == read(tmp_path / "s.ndjson") != []


def test_a_parquet_file_whose_names_are_no_text_is_refused(models: Path, tmp_path: Path) -> None:
    rows = [{**row, "a name that occurs": 1} for row in series([8])]
    source = write(tmp_path / "in.parquet", rows)
    source.write_bytes(source.read_bytes().replace(b"a name that occurs", b"\xf9 name that occurs"))
    with pytest.raises(TableError, match="it is no parquet file"):
        score_file(load(models), source, tmp_path / "out.csv")


def test_names_of_series_may_be_nested_values(models: Path, tmp_path: Path) -> None:
    rows = [{**row, "unique_id": ["a", 1 - number // 8]} for number, row in enumerate(series([16]))]
    table = pa.table({"unique_id": [[str(each) for each in row["unique_id"]] for row in rows], "ds": [row["ds"] for row in rows]})
    pq.write_table(table.append_column("y", pa.array([1.0] * 16)), tmp_path / "in.parquet")
    target = tmp_path / "out.ndjson"
    assert score_file(load(models), tmp_path / "in.parquet", target).num_records == 2
    assert {row["unique_id"] for row in read(target)} == {"['a', '1']", "['a', '0']"}


@pytest.mark.parametrize("name", ["in.csv.gz", "in.ndjson.gz"])
@pytest.mark.parametrize("is_late", [False, True])
def test_compressed_text_that_is_damaged_is_refused(models: Path, tmp_path: Path, name: str, is_late: bool) -> None:
    source = write(tmp_path / name, series([8] * 2000))
    content = bytearray(source.read_bytes())
    start = len(content) // 2 if is_late else 30
    content[start : start + 64] = b"\xff" * 64  # a block of a kind that there is not
    source.write_bytes(content)
    with pytest.raises(TableError, match="cannot be read"):
        score_file(load(models), source, tmp_path / "out.ndjson")


def test_one_run_at_a_time_writes_to_an_output(models: Path, tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.csv", series([8])), tmp_path / "out.csv"
    with Parts(target, {}), pytest.raises(TableError, match="another run writes to"):
        score_file(load(models), source, target)
    assert score_file(load(models), source, target).num_records == 1


# ------------------------------------------------------------------------------------------------------------ the model


def test_a_model_is_found_by_its_name_its_version_and_its_folder(models: Path, tmp_path: Path) -> None:
    write_forecast_folder(tmp_path, version="2", seed=3)
    write_forecast_folder(tmp_path, version="10", seed=4)
    assert load(tmp_path).version == "10"
    assert load(tmp_path, "toy-forecast:2").version == "2"
    assert load(models, str(tmp_path / "toy-forecast")).version == "10"
    assert load(models, str(tmp_path / "toy-forecast" / "2")).version == "2"
    for name, words in (("toy", "there is no model"), ("toy-forecast:3", "there is no model"), (str(models), "several models")):
        with pytest.raises(StartError, match=words):
            load(tmp_path, name)


def test_a_broken_version_makes_room_for_the_one_below(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path, version="1")
    (write_forecast_folder(tmp_path, version="2") / "model.onnx").write_bytes(b"no graph")
    assert load(tmp_path).version == "1"
    with pytest.raises(StartError, match="sha256"):
        load(tmp_path, "toy-forecast:2")
