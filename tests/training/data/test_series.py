"""Series: read in every layout, cut by time, made into windows that never look ahead."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from training.data.series import (
    Series,
    describe_calendar,
    evaluation_origins,
    evaluation_windows,
    interpolate,
    known_futures,
    num_windows,
    read_series,
    sample_windows,
    windows_in_order,
)
from training.data.sources import DataError
from training.recipe import ForecastSettings, SeriesData, SeriesSource


def forecast(context_length: int = 6, horizon: int = 2, min_length: int = 3) -> ForecastSettings:
    return ForecastSettings(context_length=context_length, horizon=horizon, min_length=min_length)


def counting(num_series: int = 2, length: int = 20) -> Series:
    """Series i counts 1000 i, 1000 i + 1, ...: a value shows its place."""
    values = tuple(1000.0 * i + np.arange(length, dtype=np.float64)[:, None] for i in range(num_series))
    ids = tuple(str(i) for i in range(num_series))
    return Series(ids, values, ("y",), ("y",), validation_length=4, test_length=4)


def read(folder: Path, text: str, **options: object) -> Series:
    (folder / "a.csv").write_text(text)
    return read_series(SeriesData(train=[SeriesSource.model_validate({"path": "a.csv", **options})]), forecast(), folder)


LONG = "unique_id,ds,y\n" + "".join(f"{key},{t},{10 * k + t}\n" for k, key in enumerate("ab") for t in range(12))
TABLE = "date,load,heat\n" + "".join(f"2020-01-{t + 1:02},{t},{t / 2}\n" for t in range(12))
NEWEST_FIRST = "\n".join(["date,load,heat", *reversed(TABLE.splitlines()[1:])])
SHUFFLED = "day,load\n" + "".join(f"{5 * t % 12 + 3:02}.01.2020,{t}\n" for t in range(12))
UNKNOWN = "ds,y\n" + "".join(f"day {t},{t}\n" for t in range(12))
WIDE = (
    '"id",'
    + ",".join(f'"V{t}"' for t in range(40))
    + "\n"
    + "".join(f'"{key}",' + ",".join(f'"{t}"' for t in range(n)) + "," * (40 - n) + "\n" for key, n in (("a", 40), ("b", 15)))
)


def test_long_files_hold_several_series(tmp_path: Path) -> None:
    series = read(tmp_path, LONG)
    assert series.ids == ("a", "b")
    assert series.values[1][:3, 0].tolist() == [10, 11, 12]


def test_wide_files_end_each_series_at_its_last_value(tmp_path: Path) -> None:
    series = read(tmp_path, WIDE)
    assert [len(values) for values in series.values] == [40, 15]
    assert series.values[1][:, 0].tolist() == list(range(15))


def test_a_table_gives_one_series_with_the_columns_named(tmp_path: Path) -> None:
    assert read(tmp_path, TABLE, time="date").features == ("load", "heat")
    assert read(tmp_path, TABLE, values=["heat"]).values[0][:3, 0].tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("ending", [".gz", ".xz"])
def test_packed_files_are_read_as_they_are_and_beside_their_plain_name(tmp_path: Path, ending: str) -> None:
    packed = gzip.compress(LONG.encode()) if ending == ".gz" else lzma.compress(LONG.encode())
    (tmp_path / f"a.csv{ending}").write_bytes(packed)
    for path in ("a.csv", f"a.csv{ending}"):
        assert read_series(SeriesData(train=[SeriesSource(path=path)]), forecast(), tmp_path).ids == ("a", "b")


@pytest.mark.parametrize("ending", [".gz", ".xz"])
def test_a_packed_file_that_is_broken_is_refused(tmp_path: Path, ending: str) -> None:
    packed = gzip.compress(LONG.encode()) if ending == ".gz" else lzma.compress(LONG.encode())
    (tmp_path / f"a.csv{ending}").write_bytes(packed[:40] + b"x" * 20)
    with pytest.raises(DataError, match="cannot be read"):
        read_series(SeriesData(train=[SeriesSource(path="a.csv")]), forecast(), tmp_path)


def test_a_test_file_goes_on_where_the_training_file_ends(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(LONG)
    (tmp_path / "test.csv").write_text("unique_id,ds,y\nb,12,22\nb,13,23\na,12,12\na,13,13\n")
    series = read_series(
        SeriesData(train=[SeriesSource(path="train.csv")], test=[SeriesSource(path="test.csv")]), forecast(), tmp_path
    )
    assert series.test_length == 2
    assert series.values[0][-3:, 0].tolist() == [11, 12, 13]
    assert series.values[1][-3:, 0].tolist() == [21, 22, 23]


def test_the_airline_passengers_need_no_file() -> None:
    series = read_series(
        SeriesData(train=[SeriesSource(builtin="air-passengers")]), ForecastSettings(context_length=24, horizon=12), None
    )
    assert len(series.values[0]) == 144
    assert series.values[0][0, 0] == 112


def test_gaps_are_filled_and_counted(tmp_path: Path) -> None:
    filled, count = interpolate(np.array([[np.nan], [1.0], [np.nan], [3.0], [np.nan]]))
    assert (filled[:, 0].tolist(), count) == ([1, 1, 2, 3, 3], 2 + 1)
    series = read(tmp_path, LONG.replace("a,5,5", "a,5,"))
    assert series.num_interpolated == 1
    assert series.values[0][5, 0] == 5


def test_short_series_are_left_out_and_counted(tmp_path: Path) -> None:
    assert read(tmp_path, LONG + "c,0,1\n").num_left_out == 1


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "is empty"),
        ("unique_id,ds,y\n", {}, "no rows"),
        (TABLE, {"values": ["cold"]}, 'has no column "cold"; there are '),
        (LONG, {"format": "long", "id": "name"}, 'has no column "name"'),
        (LONG.replace("a,3,3", "a,3,x"), {}, "'x' is not a number"),
        ("unique_id,ds,y\na,1,1\na,2,2\n", {}, 'the longest, "a", has 2 steps; 9 are needed'),
        (LONG, {"sha256": "0" * 64}, "expected sha256 0000"),
        (NEWEST_FIRST, {"time": "date"}, 'a.csv: column "date" goes back in time, from 2020-01-12 to 2020-01-11: sort the rows'),
        (LONG + "b,3,1\n", {}, 'a.csv: series "b": column "ds" goes back in time, from 11 to 3'),
        (TABLE, {"time": "datum"}, 'has no column "datum"; there are '),
        (SHUFFLED, {"time": "day"}, 'column "day" goes back in time, from 13.01.2020 to 06.01.2020: sort the rows'),
        (SHUFFLED, {}, 'If "day" is not the time, name the column that is, or give time = ""'),
        (UNKNOWN, {}, "'day 0' is no time that is known; give the form of its times"),
    ],
)
def test_unusable_files_are_refused_with_the_reason(tmp_path: Path, text: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, text, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "times",
    [
        [f"2024-10-27T0{hour}:00" for hour in (0, 1, 2, 2, 1, 2, 3, 4, 5, 6, 7, 8)],  # clocks are put back
        [f"{t + 1}.01.2024" for t in range(12)],
        [f"2024-{t + 1:02}" for t in range(12)],
        [""] * 12,
    ],
)
def test_rows_whose_times_do_not_go_back_are_read_as_they_stand(tmp_path: Path, times: list[str]) -> None:
    text = "ds,y\n" + "".join(f"{time},{t}\n" for t, time in enumerate(times))
    assert read(tmp_path, text).values[0][:, 0].tolist() == list(range(12))


def test_a_file_without_times_of_its_own_is_read_as_it_stands(tmp_path: Path) -> None:
    assert read(tmp_path, SHUFFLED, time="").values[0][:, 0].tolist() == list(range(12))
    numbered = UNKNOWN.replace("day ", "the day 1")
    assert read(tmp_path, numbered, time_format="the day %j").values[0][:, 0].tolist() == list(range(12))


HOLES = "day,load\n" + "".join(f"{t + 1:02}.01.2020,{t}\n" for t in range(16) if t not in (4, 5, 9))


def read_holes(folder: Path, missing_steps: Literal["report", "fill", "refuse"], text: str = HOLES) -> Series:
    (folder / "a.csv").write_text(text)
    data = SeriesData(train=[SeriesSource(path="a.csv", time="day")], missing_steps=missing_steps)
    return read_series(data, forecast(), folder)


def test_missing_steps_are_reported_filled_or_refused(tmp_path: Path) -> None:
    reported = read_holes(tmp_path, "report")
    assert len(reported.values[0]) == 13
    (note,) = describe_calendar(reported, "report")
    assert note.startswith("3 steps of the calendar have no row and are left out")
    assert note.endswith("a.csv: 2 between 2020-01-04 and 2020-01-07")

    filled = read_holes(tmp_path, "fill")
    assert filled.values[0][:, 0].tolist() == list(range(16))
    assert (filled.num_missing, filled.num_interpolated) == (3, 3)
    assert filled.times is not None
    assert [str(time)[:10] for time in filled.times] == [f"2020-01-{t + 1:02}" for t in range(16)]
    assert "and were filled" in describe_calendar(filled, "fill")[0]

    with pytest.raises(DataError, match=r"3 steps of one day are missing; .*: 2 between 2020-01-04 and 2020-01-07"):
        read_holes(tmp_path, "refuse")
    whole = read_holes(tmp_path, "refuse", TABLE.replace("date", "day"))
    assert describe_calendar(whole, "refuse") == []


def test_a_wrong_year_is_not_filled(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more than can be filled between 13 rows"):
        read_holes(tmp_path, "fill", HOLES.replace("16.01.2020", "16.01.2920"))


def test_a_test_file_that_begins_before_its_training_file_ends_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(LONG)
    (tmp_path / "test.csv").write_text("unique_id,ds,y\na,11,12\na,12,13\nb,12,22\nb,13,23\n")
    data = SeriesData(train=[SeriesSource(path="train.csv")], test=[SeriesSource(path="test.csv")])
    read_series(data, forecast(), tmp_path)  # equal times are those of one step
    (tmp_path / "test.csv").write_text("unique_id,ds,y\na,10,12\na,12,13\nb,12,22\nb,13,23\n")
    with pytest.raises(DataError, match='series "a": begins at 10, the file before it ends at 11'):
        read_series(data, forecast(), tmp_path)


@pytest.mark.parametrize(
    ("folder", "message"), [(None, "$SLUICE_DATA is not set"), (Path("nowhere"), "no file nowhere/m4/a.csv")]
)
def test_a_missing_file_names_its_origin_and_how_to_fetch_it(folder: Path | None, message: str) -> None:
    source = SeriesSource(path="m4/a.csv", origin="https://example.org/a.csv", catalogue="m4-hourly")
    with pytest.raises(DataError) as caught:
        read_series(SeriesData(train=[source]), forecast(), folder)
    assert message in str(caught.value)
    assert "https://example.org/a.csv" in str(caught.value)
    assert "sluice data fetch m4-hourly" in str(caught.value)


def test_training_windows_never_reach_into_validation_or_test() -> None:
    series = counting()
    largest = 0.0
    for windows in sample_windows(
        series, forecast(), batch_size=64, num_batches=20, short_share=0.5, rng=np.random.default_rng(0)
    ):
        largest = max(largest, float((windows.future % 1000).max()))
        assert windows.lengths.min() >= 3
        assert windows.lengths.max() <= 6
        for row, length in enumerate(windows.lengths):
            history = windows.history[row, :length, 0]
            assert (np.diff(history) == 1).all()
            assert windows.future[row, :, 0].tolist() == [history[-1] + 1, history[-1] + 2]
            assert (windows.history[row, length:] == 0).all()
    assert largest == series.training_end(0) - 1


def test_without_a_number_of_batches_every_window_comes_once() -> None:
    series = counting()
    batches = sample_windows(series, forecast(), batch_size=7, num_batches=None, short_share=0.0, rng=np.random.default_rng(0))
    firsts = np.concatenate([windows.future[:, 0, 0] for windows in batches])
    assert len(firsts) == len(set(firsts)) == num_windows(series, forecast()) == 2 * 8


def test_windows_in_order_follow_each_other_by_one_step_through_one_series_after_the_other() -> None:
    batches = list(windows_in_order(counting(), forecast(), batch_size=5))
    assert [len(windows) for windows in batches] == [5, 5, 5, 1]
    firsts = np.concatenate([windows.future[:, 0, 0] for windows in batches])
    assert firsts.tolist() == [*range(3, 11), *range(1003, 1011)]
    assert batches[0].lengths.tolist() == [3, 4, 5, 6, 6]
    assert batches[0].history[4, :6, 0].tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("part", "first"), [("validation", 12), ("test", 16)])
def test_evaluation_windows_tile_their_part(part: str, first: int) -> None:
    windows = evaluation_windows(counting(), forecast(), part)
    starts = [first, first + 2, 1000 + first, 1002 + first]
    assert windows.future[:, 0, 0].tolist() == starts
    assert windows.history[:, -1, 0].tolist() == [start - 1 for start in starts]
    assert len(evaluation_windows(counting(), forecast(), part, 1)) == 2 * 3


def test_origins_stand_in_the_order_of_the_windows() -> None:
    windows = evaluation_windows(counting(), forecast(), "test")
    assert [1000 * i + origin for i, origin in evaluation_origins(counting(), forecast())] == windows.future[:, 0, 0].tolist()


def test_rows_are_padded_no_further_than_they_need() -> None:
    windows = evaluation_windows(counting(1, 12), forecast(context_length=10), "test")
    assert windows.lengths.tolist() == [8, 10]
    assert windows.rows(slice(0, 1)).history.shape == (1, 8, 1)


def test_targets_may_be_some_of_the_features(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(TABLE)
    data = SeriesData(train=[SeriesSource(path="a.csv")], targets=["heat"])
    windows = evaluation_windows(read_series(data, forecast(), tmp_path), forecast(), "test")
    assert windows.history.shape[2] == 2
    assert windows.future[0, :, 0].tolist() == [5, 5.5]
    with pytest.raises(DataError, match='target "cold" is not among'):
        read_series(SeriesData(train=[SeriesSource(path="a.csv")], targets=["cold"]), forecast(), tmp_path)


@pytest.mark.data
def test_the_m4_hourly_series_are_as_published(data_folder: Path) -> None:
    data = SeriesData(
        train=[SeriesSource(path="m4-hourly/Hourly-train.csv")], test=[SeriesSource(path="m4-hourly/Hourly-test.csv")]
    )
    series = read_series(data, ForecastSettings(context_length=336, horizon=48), data_folder)
    assert len(series.ids) == 414
    assert {len(values) for values in series.values} == {748, 1008}
    assert series.test_length == 48


def test_one_series_keeps_the_dates_of_its_steps(tmp_path: Path) -> None:
    series = read(tmp_path, TABLE, time="date")
    assert series.times is not None
    assert str(series.times[-1])[:10] == "2020-01-12"
    assert read(tmp_path, TABLE.replace("2020-01-05", ""), time="date").times is None
    assert read(tmp_path, LONG).times is None


SHORT = "unique_id,ds,y\n" + "".join(f"{key},{t},{10 * k + t}\n" for k, key in enumerate("abc") for t in range(9 + k))
SHORT_TESTS = "unique_id,ds,y\na,9,9\nb,10,20\nb,11,21\nc,11,31\nc,12,32\n"


def read_short(folder: Path, **options: object) -> Series:
    """Series of 9, 10 and 11 steps, whose test parts have 1, 2 and 2."""
    (folder / "train.csv").write_text(SHORT)
    (folder / "test.csv").write_text(SHORT_TESTS)
    sources = {"train": [{"path": "train.csv", "name": "short"}], "test": [{"path": "test.csv"}]}
    return read_series(SeriesData.model_validate({**sources, **options}), forecast(), folder)


def test_test_parts_may_differ_below_the_horizon_where_futures_may_be_short(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='test parts differ in length: series "a" has 1 values'):
        read_short(tmp_path)
    series = read_short(tmp_path, min_future=1)
    assert [series.test_start(index) for index in range(3)] == [9, 10, 11]
    windows = evaluation_windows(series, forecast(), "test")
    assert windows.lengths.tolist() == [6, 6, 6]
    assert np.isnan(windows.future[..., 0]).tolist() == [[False, True], [False, False], [False, False]]
    known = known_futures(series, forecast())[..., 0]
    assert known[0, 0] == 9
    assert np.isnan(known[0, 1])
    assert known[1:].tolist() == [[20, 21], [31, 32]]


def test_training_windows_with_short_futures_end_where_the_training_part_does(tmp_path: Path) -> None:
    series = read_short(tmp_path, min_future=1)
    assert num_windows(series, forecast()) == sum(end - 1 - 3 + 1 for end in (7, 8, 9))
    options = {"batch_size": 64, "num_batches": None, "short_share": 0.0, "rng": np.random.default_rng(0)}
    (windows,) = sample_windows(series, forecast(), **options)  # type: ignore[arg-type]
    future = windows.future[..., 0]
    assert len(future) == num_windows(series, forecast())
    assert np.isnan(future).any(1).sum() == 3
    assert not np.isnan(future[:, 0]).any()
    last = [np.nanmax(future[(future[:, 0] >= 10 * k) & (future[:, 0] < 10 * k + 10)]) for k in range(3)]
    assert last == [6, 17, 28]


def test_the_validation_part_can_be_learned_from(tmp_path: Path) -> None:
    series = read_short(tmp_path, min_future=1, train_on_validation=True)
    assert [series.learning_end(index) for index in range(3)] == [9, 10, 11]
    assert [series.training_end(index) for index in range(3)] == [7, 8, 9]
    assert len(evaluation_windows(series, forecast(), "validation")) == 3


def test_series_are_left_out_by_name_and_remember_their_set(tmp_path: Path) -> None:
    sources = [{"path": "train.csv", "name": "short", "exclude": ["b"]}]
    series = read_short(tmp_path, min_future=1, train=sources)
    assert series.ids == ("a", "c")
    assert series.sets == ("short", "short")
    assert series.num_left_out == 0


def read_with(folder: Path, **further: object) -> Series:
    (folder / "a.csv").write_text(LONG)
    (folder / "more.csv").write_text(TABLE)
    data = {"train": [{"path": "a.csv"}], "further": [{"path": "more.csv", **further}]}
    return read_series(SeriesData.model_validate_json(json.dumps(data)), forecast(), folder)


def test_columns_of_further_files_are_series_to_learn_from_and_nothing_else(tmp_path: Path) -> None:
    series = read_with(tmp_path, weight=2.0)
    assert series.ids == ("a", "b")
    assert [values[:, 0].tolist() for values in series.further] == [list(range(12)), [t / 2 for t in range(12)]]
    assert series.weights == (2.0, 2.0)
    assert len(series.training_values()) == 2 * 8 + 2 * 12
    assert num_windows(series, forecast()) == 2 * (8 - 4) + 2 * (12 - 4)
    assert len(evaluation_windows(series, forecast(), "test")) == 2
    assert len(series.contents) == 2


def test_further_series_are_drawn_by_their_weight_and_to_their_end(tmp_path: Path) -> None:
    series = read_with(tmp_path, values=["heat"], weight=4.0)
    rng = np.random.default_rng(0)
    (windows,) = sample_windows(series, forecast(), batch_size=600, num_batches=1, short_share=0.0, rng=rng)
    is_heat = np.isclose(windows.future[:, 1, 0] - windows.future[:, 0, 0], 0.5)
    assert 0.6 < is_heat.mean() < 0.73  # four of six
    assert windows.future[is_heat].max() == 5.5
    assert windows.future[~is_heat].max() == 17  # of series b, the last before validation and test


def test_further_rows_can_be_cut_and_taken_by_their_mean(tmp_path: Path) -> None:
    series = read_with(tmp_path, values=["load"], rows=11, mean_of=2)
    assert series.further[0][:, 0].tolist() == [0.5, 2.5, 4.5, 6.5, 8.5]


def test_synthetic_series_follow_from_the_seed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(LONG)
    data = {
        "train": [{"path": "a.csv"}],
        "synthetic": [{"kind": "walk", "count": 3}, {"kind": "counts", "count": 1, "weight": 0.5}],
    }
    found = [read_series(SeriesData.model_validate_json(json.dumps(data)), forecast(), tmp_path, seed=seed) for seed in (1, 1, 2)]
    assert [len(values) for values in found[0].further] == [11] * 4
    assert found[0].weights == (1.0, 1.0, 1.0, 0.5)
    assert np.array_equal(found[0].further[0], found[1].further[0])
    assert not np.array_equal(found[0].further[0], found[2].further[0])


def test_further_series_need_series_of_one_feature(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(TABLE)
    data = SeriesData.model_validate_json(json.dumps({"train": [{"path": "a.csv"}], "synthetic": [{"kind": "walk", "count": 1}]}))
    with pytest.raises(DataError, match="needs series of one feature, got"):
        read_series(data, forecast(), tmp_path)


def test_short_lengths_by_the_logarithm_are_mostly_short() -> None:
    options = ForecastSettings(context_length=512, horizon=2, min_length=8)
    rng = np.random.default_rng(0)
    series = counting(1, 2000)
    shares = {}
    for how in ("uniform", "log"):
        given: Literal["uniform", "log"] = "log" if how == "log" else "uniform"
        (windows,) = sample_windows(
            series, options, batch_size=500, num_batches=1, short_share=0.999, rng=rng, short_lengths=given
        )
        assert windows.lengths.min() >= 8
        assert windows.lengths.max() <= 512
        shares[how] = float((windows.lengths < 64).mean())
    assert shares["uniform"] < 0.2 < 0.4 < shares["log"] < 0.65
