from __future__ import annotations

import pytest

from service.tasks import frequencies
from service.tasks.frequencies import MAX_LENGTH, Frequency, read_frequency, timestamps


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("S s sec second seconds Seconds secondly", Frequency("S")),
        ("T min minute minutes Minutely 1min", Frequency("T")),
        ("H h hour hours HOURLY", Frequency("H")),
        ("D d day days daily", Frequency("D")),
        ("W w week weeks weekly W-SUN W-MON", Frequency("W")),
        ("M MS mo month months monthly", Frequency("M")),
        ("Q q QS QS-OCT Q-DEC quarter quarters quarterly", Frequency("Q")),
        ("Y y A AS YS year years yearly annual annually A-DEC", Frequency("Y")),
        ("ME", Frequency("M", is_at_end=True)),
        ("QE QE-DEC", Frequency("Q", is_at_end=True)),
        ("YE YE-DEC", Frequency("Y", is_at_end=True)),
        ("15min 15T", Frequency("T", 15)),
        ("2ME", Frequency("M", 2, is_at_end=True)),
    ],
)
def test_a_frequency_has_many_names(names: str, expected: Frequency) -> None:
    assert {name: read_frequency(name) for name in names.split()} == dict.fromkeys(names.split(), expected)


@pytest.mark.parametrize("name", ["", "m", "ms", "us", "B", "H-SUN", "0H", "-1H", "1.5H", "every hour", "12", "PT1H"])
def test_a_name_that_is_unknown_or_means_two_things_is_no_frequency(name: str) -> None:
    assert read_frequency(name) is None


def test_a_name_that_is_too_long_to_mean_anything_is_not_kept() -> None:
    num_kept = frequencies._read.cache_info().currsize
    assert read_frequency("H" * (MAX_LENGTH + 1)) is None
    assert frequencies._read.cache_info().currsize == num_kept


@pytest.mark.parametrize(
    ("start", "name", "expected"),
    [
        ("2024-01-31", "M", ["2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30"]),
        ("2023-01-31", "M", ["2023-01-31", "2023-02-28", "2023-03-31", "2023-04-30"]),
        ("2024-02-29", "M", ["2024-02-29", "2024-03-29", "2024-04-29", "2024-05-29"]),
        ("2024-02-29", "ME", ["2024-02-29", "2024-03-31", "2024-04-30", "2024-05-31"]),
        ("2023-11-30", "Q", ["2023-11-30", "2024-02-29", "2024-05-30", "2024-08-30"]),
        ("2024-02-29", "Y", ["2024-02-29", "2025-02-28", "2026-02-28", "2027-02-28"]),
        ("2023-12-31", "D", ["2023-12-31", "2024-01-01", "2024-01-02", "2024-01-03"]),
        ("2024-02-26", "W", ["2024-02-26", "2024-03-04", "2024-03-11", "2024-03-18"]),
        ("2024-02-28", "12H", ["2024-02-28T00:00:00", "2024-02-28T12:00:00", "2024-02-29T00:00:00", "2024-02-29T12:00:00"]),
        (
            "2024-03-31T00:30:00+01:00",
            "H",
            ["2024-03-31T00:30:00+01:00", "2024-03-31T01:30:00+01:00", "2024-03-31T02:30:00+01:00", "2024-03-31T03:30:00+01:00"],
        ),
        ("2024-01-01T23:59:30Z", "15S", [f"2024-01-0{d}T{t}Z" for d, t in ((1, "23:59:30"), (1, "23:59:45"), (2, "00:00:00"))]),
        ("2024-01-01 00:00", "T", ["2024-01-01T00:00:00", "2024-01-01T00:01:00", "2024-01-01T00:02:00", "2024-01-01T00:03:00"]),
    ],
)
def test_timestamps_step_from_the_start_in_its_own_form(start: str, name: str, expected: list[str]) -> None:
    frequency = read_frequency(name)
    assert frequency is not None
    assert timestamps(start, frequency, range(len(expected))) == expected


@pytest.mark.parametrize(
    ("start", "name"), [("9999-12-31", "D"), ("9999-12-01", "M"), ("yesterday", "D"), ("2024-02-30", "D"), ("", "D")]
)
def test_what_is_no_timestamp_or_leaves_the_calendar_is_refused(start: str, name: str) -> None:
    frequency = read_frequency(name)
    assert frequency is not None
    with pytest.raises(ValueError, match=r"."):
        timestamps(start, frequency, (0, 1))
