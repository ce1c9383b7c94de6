"""Forecasting competitions: M3, tourism, and M4's hourly series, asked of the service series by series.

Each measure is averaged over all points that are forecast, as the competitions publish it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from training.data.sources import DataError
from training.evaluation.benchmark import Benchmark, Evaluation, File, Row
from training.evaluation.client import EvaluationError, NotServed, Service
from training.evaluation.naive import Floats, naive, naive2, seasonal_naive, theta

ENDPOINT = "/predict/forecast"
LEVELS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
M3 = "https://forecasters.org/resources/time-series-data/m3-competition/ (as in the R package Mcomp)"
TOURISM = "https://cran.r-project.org/package=Tcomp (Athanasopoulos et al. 2011)"
M4_NAIVE2 = (18.383, 2.395)
"""Official totals of Naive2 for the hourly series: sMAPE, MASE."""


@dataclass(frozen=True)
class Part:
    """The series of one frequency: their files, how they are asked for, and what others scored on them."""

    name: str
    frequency: str
    season_length: int
    train: File
    test: File
    published: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """Of one part: histories and true futures as the files have them, and the service's forecasts, (series, horizon)."""

    part: Part
    histories: Sequence[Floats]
    truth: Floats
    forecast: Floats
    quantiles: Floats | None  # (series, horizon, levels)


def smape(truth: Floats, forecast: Floats) -> Floats:
    """Terms of sMAPE in percent, 0 to 200; 0 where both are zero."""
    size = np.abs(truth) + np.abs(forecast)
    terms: Floats = 200 * np.abs(truth - forecast) / np.where(size > 0, size, 1.0)
    return terms


def mape(truth: Floats, forecast: Floats) -> Floats:
    """Terms of MAPE in percent; NaN where the truth is zero."""
    size = np.abs(truth)
    terms: Floats = np.where(size > 0, 100 * np.abs(truth - forecast) / np.where(size > 0, size, 1.0), np.nan)
    return terms


def read_part(part: Part, folder: Path | None) -> tuple[list[Floats], Floats]:
    """Histories and futures of all series, in the order of the test file. Raises DataError."""
    histories, futures = (_read_rows(file, folder) for file in (part.train, part.test))
    missing = [key for key in futures if key not in histories]
    if missing:
        raise DataError(f'{part.test.path}: series "{missing[0]}" is not in {part.train.path}')
    lengths = {len(values) for values in futures.values()}
    if len(lengths) != 1:
        raise DataError(f"{part.test.path}: the series differ in length, {min(lengths)} to {max(lengths)} values")
    return [histories[key] for key in futures], np.stack(list(futures.values()))


def ask(service: Service, part: Part, histories: Sequence[Floats], horizon: int, point: str) -> tuple[Floats, Floats | None, str]:
    """Forecasts (series, horizon), quantiles at LEVELS if the model has them, and the point forecast that it gave.

    `point` is asked for; of a model without it, its own. Raises NotServed where no model takes these series.
    """
    instances = [{"history": history.tolist()} for history in histories]
    attempts: list[dict[str, Any]] = [{"point": point, "quantiles": LEVELS}, {"quantiles": LEVELS}, {"quantiles": []}]
    refusal = NotServed(f"no model takes series of {part.frequency}")
    for options in attempts:
        parameters = {"horizon": horizon, "frequency": part.frequency, **options}
        try:
            predictions = service.predict(ENDPOINT, instances, parameters)
        except NotServed as exc:
            refusal = exc
            continue
        forecast = _numbers([answer.get("forecast") for answer in predictions], (len(instances), horizon))
        quantiles = None
        if options["quantiles"]:
            levels = [[_quantile(answer, level) for level in LEVELS] for answer in predictions]
            quantiles = _numbers(levels, (len(instances), len(LEVELS), horizon)).transpose(0, 2, 1)
        return forecast, quantiles, options.get("point", "")
    raise refusal


def score_competition(
    parts: Sequence[Part],
    measure: Callable[[Floats, Floats], Floats],
    label: str,
    point: str,
    baselines: Mapping[str, Callable[[Floats, int, int], Floats]],
    totals: Mapping[str, float],
    name: str,
    service: Service,
    folder: Path | None,
) -> Evaluation:
    """A row for every part with its measure, one with the total over all points, and one with the bands' coverage of each."""
    rows: list[Row] = []
    answers: list[Answers] = []
    terms: dict[str, list[Floats]] = {key: [] for key in ("", *baselines)}
    for part in parts:
        histories, truth = read_part(part, folder)
        horizon = truth.shape[1]
        found = {key: _all(forecast, histories, horizon, part.season_length) for key, forecast in baselines.items()}
        for key, forecast in found.items():
            terms[key].append(measure(truth, forecast))
        beside = {key: float(np.nanmean(terms[key][-1])) for key in baselines}
        try:
            forecast, quantiles, given = ask(service, part, histories, horizon, point)
        except NotServed as exc:
            rows.append(Row(part.name, label, None, beside, part.published, note=str(exc)))
            continue
        answers.append(Answers(part, histories, truth, forecast, quantiles))
        terms[""].append(measure(truth, forecast))
        note = "" if given == point else f"the model has no point forecast {point!r}: its own"
        rows.append(Row(part.name, label, float(np.nanmean(terms[""][-1])), beside, part.published, note))
    total = float(np.nanmean(_flat(terms[""]))) if len(answers) == len(parts) else None
    rows.append(Row("all", label, total, {key: float(np.nanmean(_flat(terms[key]))) for key in baselines}, totals))
    rows += [row for row in map(coverage, answers) if row is not None]
    curves = {answer.part.name: reliability(answer) for answer in answers if answer.quantiles is not None}
    return Evaluation(name, rows, list(service.models), service.rows, service.seconds, curves)


def coverage(answers: Answers) -> Row | None:
    """The share of true values between the outermost quantiles, in percent; None without quantiles."""
    if answers.quantiles is None:
        return None
    inside = (answers.truth >= answers.quantiles[..., 0]) & (answers.truth <= answers.quantiles[..., -1])
    return Row(answers.part.name, "coverage of the 80 % band", 100 * float(inside.mean()))


def reliability(answers: Answers) -> list[list[float]]:
    """For every level the share of true values below its quantile."""
    assert answers.quantiles is not None
    below = (answers.truth[..., None] <= answers.quantiles).mean(axis=(0, 1))
    return [[level, float(share)] for level, share in zip(LEVELS, below, strict=True)]


def measure_m4_hourly(histories: Sequence[Floats], truth: Floats, forecast: Floats) -> dict[str, float]:
    """sMAPE in percent, MASE and OWA of `forecast`, (series, 48), as the M4 competition has them for hourly series."""
    season = M4_HOURLY.season_length
    scales = np.array([np.abs(history[season:] - history[:-season]).mean() for history in histories])[:, None]
    found = {"sMAPE": float(smape(truth, forecast).mean()), "MASE": float((np.abs(truth - forecast) / scales).mean())}
    return found | {"OWA": (found["sMAPE"] / M4_NAIVE2[0] + found["MASE"] / M4_NAIVE2[1]) / 2}


def weighted_quantile_loss(truth: Floats, quantiles: Floats) -> float:
    """Of `quantiles` (..., levels) at `LEVELS`: twice their loss over the sum of the absolute truth, the mean over levels."""
    error = truth[..., None] - quantiles
    levels = np.array(LEVELS)
    losses = 2 * np.maximum(levels * error, (levels - 1) * error).reshape(-1, len(LEVELS)).sum(axis=0)
    return float((losses / np.abs(truth).sum()).mean())


def score_m4_hourly(service: Service, folder: Path | None) -> Evaluation:
    """sMAPE, MASE and OWA of the median 48 hours ahead, the weighted quantile loss, and the band's coverage."""
    part = M4_HOURLY
    histories, truth = read_part(part, folder)
    horizon, season = truth.shape[1], part.season_length
    base = measure_m4_hourly(histories, truth, _all(seasonal_naive, histories, horizon, season))
    winner = {"sMAPE": 9.328, "MASE": 0.893, "OWA": 0.440}
    published = {key: {"ES-RNN (winner)": value} for key, value in winner.items()}
    try:
        forecast, quantiles, _ = ask(service, part, histories, horizon, "median")
    except NotServed as exc:
        rows = [Row(part.name, key, None, {"seasonal naive": base[key]}, published[key], note=str(exc)) for key in base]
        return Evaluation("m4-hourly", rows, list(service.models), service.rows, service.seconds)
    own = measure_m4_hourly(histories, truth, forecast)
    rows = [Row(part.name, key, own[key], {"seasonal naive": base[key]}, published[key]) for key in own]
    answers = Answers(part, histories, truth, forecast, quantiles)
    if quantiles is not None:
        loss = weighted_quantile_loss(truth, quantiles)
        rows.append(Row(part.name, "weighted quantile loss", loss, published={"MSTL": 0.0285}))
    rows += [row for row in (coverage(answers),) if row is not None]
    curves = {part.name: reliability(answers)} if quantiles is not None else {}
    return Evaluation("m4-hourly", rows, list(service.models), service.rows, service.seconds, curves)


def _all(forecast: Callable[[Floats, int, int], Floats], histories: Sequence[Floats], horizon: int, season_length: int) -> Floats:
    return np.stack([forecast(history, horizon, season_length) for history in histories])


def _flat(parts: Sequence[Floats]) -> Floats:
    return np.concatenate([part.ravel() for part in parts]) if parts else np.array([np.nan])


def _quantile(answer: Mapping[str, Any], level: float) -> object:
    found = answer.get("quantiles")
    return found.get(f"{level:.12g}") if isinstance(found, dict) else None


def _numbers(values: Sequence[Any], shape: tuple[int, ...]) -> Floats:
    try:
        numbers = np.array(values, np.float64)
    except (TypeError, ValueError) as exc:
        raise EvaluationError("a prediction holds something else than numbers, or another count of them") from exc
    if numbers.shape != shape or not np.isfinite(numbers).all():
        raise EvaluationError(f"predictions of shape {numbers.shape}, expected {shape}, all finite")
    return numbers


def _read_rows(file: File, folder: Path | None) -> dict[str, Floats]:
    """A wide file: id, then the values of one series."""
    table = file.read(folder).table()
    try:
        matrix = table.select(table.columns[1:]).cast(pl.Float64, strict=True).fill_null(float("nan")).to_numpy()
    except pl.exceptions.PolarsError as exc:
        raise DataError(f"{file.path}: holds a value that is no number: {exc}") from exc
    keys = table.to_series(0).cast(pl.String).to_list()
    rows = {key: row[np.isfinite(row)] for key, row in zip(keys, matrix, strict=True)}
    empty = [key for key, row in rows.items() if len(row) == 0]
    if empty:
        raise DataError(f'{file.path}: series "{empty[0]}" has no values')
    return rows


def _last(history: Floats, horizon: int, season_length: int) -> Floats:
    return naive(history, horizon)


def _part(
    folder: str, kind: str, frequency: str, season_length: int, sha256: tuple[str, str], published: Mapping[str, float]
) -> Part:
    origin = M3 if folder == "m3" else TOURISM
    train, test = (
        File(f"{folder}/{kind}-{part}.csv", sha, origin=origin) for part, sha in zip(("train", "test"), sha256, strict=True)
    )
    return Part(kind.lower(), frequency, season_length, train, test, published)


M3_PARTS = (
    _part(
        "m3",
        "Yearly",
        "Y",
        1,
        (
            "e099bbe450d8d1acf4f11980dc88b57d2d197ae329a587e71057b15ab3bf3138",
            "b84165ff56e8bff22dc6299ca561cabbd079fed43882bcaa15945a95a4c27c14",
        ),
        {"Theta (winner)": 16.90, "N-BEATS": 15.93},
    ),
    _part(
        "m3",
        "Quarterly",
        "Q",
        4,
        (
            "ffd552841119057cb6eba83826eb847c75de2cd2a2885dbf1de845f3de742455",
            "dde2834f4afb79e68a061e590d21390d5f5f9dafe5539e5db659f32621a67f7a",
        ),
        {"Theta (winner)": 8.96, "N-BEATS": 8.84},
    ),
    _part(
        "m3",
        "Monthly",
        "M",
        12,
        (
            "40042e327cef9d407d10e2fc80bd00e0baa17e2a21cf2b793f15e7bfc7528983",
            "c139e3da1dc41a64c80c81ae1d0b18dec524df22a3f8d5e3f98a8987545ab728",
        ),
        {"Theta (winner)": 13.85, "N-BEATS": 13.11},
    ),
    # Of no stated frequency; asked for as daily series are.
    _part(
        "m3",
        "Other",
        "D",
        1,
        (
            "1811995ffcd07f59716e4d707356eb11b49d9185c90bc5547cf6b75b2389bb57",
            "c8dc17e9136472cc21555a5a83a2160e60763a1c9b8411bc8662fccba5a6d5ad",
        ),
        {"Theta (winner)": 4.41, "N-BEATS": 4.24},
    ),
)
TOURISM_PARTS = (
    _part(
        "tourism",
        "Yearly",
        "Y",
        1,
        (
            "aa4a58ae810c668d13434effcc2a82c0678ee8e9f5ed703ea47cebe56b8be4e7",
            "a62c83132e47e05aa39f6757d53165556bd6903c6c86acc2c231a60cb870df3d",
        ),
        {"N-BEATS": 21.44},
    ),
    _part(
        "tourism",
        "Quarterly",
        "Q",
        4,
        (
            "ca88f43894ad1c47c855824db5004bfc9af0c42d77e6ac77cbf479dbfaaf8222",
            "26056835ddb14c27eecc17e5d20ce85e42aa02e4d1ad5d0978696d2ccd19d82d",
        ),
        {"N-BEATS": 14.78},
    ),
    _part(
        "tourism",
        "Monthly",
        "M",
        12,
        (
            "e6079964e5f3047269547bbab8c28469367bb7d7093442c23830f160f6c8b2c8",
            "f073db000c9e5db44aa3f766b0864cf6989585efd31a2344ea27dd0ae6cca133",
        ),
        {"N-BEATS": 19.29},
    ),
)
M4_HOURLY = Part(
    "hourly",
    "H",
    24,
    File("m4-hourly/Hourly-train.csv", "ea59b7783573c49077a835ab6465c7d66f1474783360f310988a9a737fbca62f", "m4-hourly"),
    File("m4-hourly/Hourly-test.csv", "71a57fccb15e534d973626ada4fb87febf789e9317715b7cc6dd3b5f90db6f42", "m4-hourly"),
)
BENCHMARKS = (
    Benchmark(
        "m3",
        "M3 competition: 3,003 yearly, quarterly, monthly and other series; sMAPE",
        partial(
            score_competition,
            M3_PARTS,
            smape,
            "sMAPE",
            "median",
            {"naive": _last, "Naive2": naive2, "Theta": theta},
            {"Theta (winner)": 13.01, "N-BEATS": 12.37},
            "m3",
        ),
    ),
    Benchmark(
        "tourism",
        "tourism competition: 1,311 yearly, quarterly and monthly series; MAPE",
        partial(
            score_competition,
            TOURISM_PARTS,
            mape,
            "MAPE",
            "mape",
            {"seasonal naive": seasonal_naive, "Theta": theta},
            {"the competition's best": 19.35, "N-BEATS": 18.52},
            "tourism",
        ),
    ),
    Benchmark("m4-hourly", "M4 competition, hourly: 414 series, 48 hours ahead; OWA", score_m4_hourly),
)
