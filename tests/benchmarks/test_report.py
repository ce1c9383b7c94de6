"""From rounds to numbers: ratios are computed within a round, efficiency is a share of the round's own ceilings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.cases import CASES, select_cases
from benchmarks.ceilings import ceiling_per_s, efficiency
from benchmarks.plot import PANELS, draw_svg
from benchmarks.report import PAGE, PICTURE, RESULTS, render, write
from benchmarks.results import BatchInvariance, Failure, GraphSpeed, Measurement, Results, Start, TargetSpec, read_results
from benchmarks.rivals import NOT_MEASURED, RIVALS
from benchmarks.rivals.options import Batching
from benchmarks.summary import Spread, Summary

SLUICE = TargetSpec(
    name="Sluice, 2 processes",
    family="sluice",
    num_processes=2,
    num_threads=1,
    batching=Batching(0, "instances", 0),
)
HAND = TargetSpec(name="hand-written, 2 processes", family="hand-written", num_processes=2)
HAND_1 = TargetSpec(name="hand-written, 1 process", family="hand-written", num_processes=1)
TUNED = TargetSpec(name="hand-written tuned, 2 processes", family="hand-written tuned", num_processes=2, num_threads=1)
TUNED_1 = TargetSpec(name="hand-written tuned, 1 process", family="hand-written tuned", num_processes=1, num_threads=1)
LIT = TargetSpec(
    name="LitServe, 2 processes",
    family="packaged",
    num_processes=2,
    num_threads=1,
    batching=Batching(32, "requests", 2.5),
    versions="litserve 0.2",
)
BENTO = TargetSpec(
    name="BentoML, 2 processes",
    family="packaged",
    num_processes=2,
    num_threads=1,
    batching=Batching(32, "instances", 60_000, is_adaptive=True),
)
ECHO = TargetSpec(name="echo", family="echo", num_processes=1)
C64, RAGGED, I256, OPEN = select_cases(["c64", "ragged", "i256", "open50"])
# The machine was half as fast in the second round, and the best packaged server was another one.
RATES = {
    SLUICE: (4000, 2000, 4400),
    HAND: (1000, 400, 1000),
    HAND_1: (100, 100, 100),
    TUNED: (2000, 500, 1100),
    TUNED_1: (1000, 1000, 1000),
    LIT: (800, 250, 800),
    BENTO: (500, 500, 500),
    ECHO: (20_000, 10_000, 20_000),
}


def measured(target: TargetSpec, case: str, number: int, rate: float, **more: float) -> Measurement:
    times = {"p50_ms": 12.0 + number, "p99_ms": 30.0, "num_failed": number}
    about = {"target": target.name, "case": case, "round": number, "requests_per_s": rate}
    return Measurement.model_validate(times | about | more)


@pytest.fixture
def results() -> Results:
    closed = [measured(target, "c64", number, rate) for target, rates in RATES.items() for number, rate in enumerate(rates)]
    open_loop = {"p999_ms": 88.0, "arrivals_per_s": 2010.0, "lag_p99_ms": 0.3, "lag_max_ms": 2.0, "busy": 0.12}
    return Results(
        created="2026-01-02T03:04+00:00",
        command="python -m benchmarks.compare --rounds 3",
        machine={"cores": "2", "processor": "a processor"},
        versions={"sluice": "0.1.0", "python": "3.11"},
        seconds=3,
        num_rounds=3,
        cases=(C64, RAGGED, I256, OPEN),
        targets=tuple(RATES),
        unavailable={"MLServer": "no matching\ndistribution"},
        measurements=(
            *closed,
            measured(SLUICE, "ragged", 0, 3000),
            measured(LIT, "ragged", 0, 1000),
            measured(BENTO, "ragged", 0, 1000),
            measured(SLUICE, "i256", 0, 12.5),
            measured(ECHO, "i256", 0, 1000),
            measured(SLUICE, "open50", 0, 2000, **open_loop),
        ),
        starts=(Start(round=0, target=SLUICE.name, model="lstm-2x64", ready_s=1.25, resident_bytes=155_000_000),),
        graphs=(
            *(GraphSpeed(round=number, case="c64", rows_per_s=5000, batch_size=16) for number in range(3)),
            GraphSpeed(round=0, case="i256", rows_per_s=5120, batch_size=32),
        ),
        invariances=(
            BatchInvariance(round=0, target=SLUICE.name, case="ragged", worst_difference=2e-7),
            BatchInvariance(round=1, target=SLUICE.name, case="ragged", worst_difference=3e-7),
            BatchInvariance(round=0, target=LIT.name, case="ragged", worst_difference=3e-7),
            BatchInvariance(round=1, target=LIT.name, case="ragged", worst_difference=0.0123),
        ),
        failures=(Failure(round=1, target=BENTO.name, model="lstm-2x64", case="i256", reason="refused"),),
    )


def test_the_ceiling_is_http_and_graph_one_after_the_other_in_every_process() -> None:
    assert ceiling_per_s(1, 20_000, 5000, 1) == pytest.approx(4000)
    assert ceiling_per_s(2, 20_000, 5000, 1) == pytest.approx(8000)
    assert ceiling_per_s(1, 1000, 5120, 256) == pytest.approx(1 / (0.001 + 0.05))
    assert efficiency(3000, 1, 20_000, 5000) == pytest.approx(0.75)


def test_ratios_are_computed_within_each_round(results: Results) -> None:
    summary = Summary(results)
    # 4, 5 and 4.4: the median of the rates, 4000 to 1000, would be 4.
    assert summary.ratio_to_handwritten(SLUICE, C64) == pytest.approx(4.4)
    # To LitServe 5, to BentoML 4, to LitServe 5.5.
    assert summary.ratio_to_packaged(SLUICE, C64) == pytest.approx(5)
    assert summary.spread(SLUICE, C64, lambda one: one.requests_per_s) == Spread(4000, 2000, 4400)


def test_the_handwritten_peer_has_the_same_number_of_processes(results: Results) -> None:
    summary = Summary(results)
    assert summary.ratio_to_handwritten(HAND_1, C64) == 1
    assert summary.ratio_to_handwritten(SLUICE, I256) is None


def test_the_tuned_peer_has_the_number_of_processes_that_was_fastest_in_the_round(results: Results) -> None:
    summary = Summary(results)
    # To two processes 2, to one process 2 (two processes would be 4), to two processes 4.
    assert summary.ratio_to_tuned(SLUICE, C64) == pytest.approx(2)
    assert summary.ratio_to_tuned(TUNED_1, C64) == pytest.approx(1000 / 1100)
    assert summary.ratio_to_tuned(SLUICE, I256) is None


def test_efficiency_is_the_share_of_the_rounds_own_ceilings(results: Results) -> None:
    summary = Summary(results)
    # Ceilings of two processes: 8000, then 6667 where canned responses were half as fast.
    assert summary.efficiency(SLUICE, C64) == pytest.approx(0.5)
    assert summary.efficiency(SLUICE, I256) == pytest.approx(12.5 / 2 * (1 / 1000 + 256 / 5120), rel=1e-3)
    assert summary.efficiency(SLUICE, OPEN) is None


def test_the_page_holds_rates_ratios_and_failures(results: Results) -> None:
    page = render(results)
    assert "| Sluice, 2 processes | 2 × 1 | 0 ms | 4,000 (2,000 to 4,400) | 13.0 / 30.0 | 4.40 | 2.00 | 5.00 | 0.50 | 3 |" in page
    assert "| Sluice, 2 processes | 2 × 1 | 0 ms | 12.5 | 3,200 | 12.0 / 30.0 | – | – | – | 0.32 | 0 |" in page
    assert "| Sluice, 2 processes | 2 × 1 | 0 ms | 2,010 | 2,000 | 12.0 | 30.0 | 88.0 | 0 | 0.30 | 0.12 |" in page
    assert "| 64 connections | 2 | 4,000 | 4.40 | 2.00 | 5.00 | 0.50 | 13.0 / 30.0 |" in page
    assert "| 64 connections | 20,000 (10,000 to 20,000) | 5,000 | 16 | 4,000 |" in page
    assert "| Sluice, 2 processes | 1.25 | 155 |" in page
    assert "* **MLServer** could not be installed: no matching distribution" in page
    assert "* BentoML, 2 processes, i256, round 2: refused" in page
    assert "`python -m benchmarks.compare --rounds 3`" in page
    assert "| echo |" not in page


def test_every_row_names_the_servers_threads_and_batch_wait(results: Results) -> None:
    page = render(results)
    assert "| Sluice, 2 processes | 2 × 1 | instances, as measured at load | 0 ms |" in page
    assert "| LitServe, 2 processes | 2 × 1 | 32 requests | 2.5 ms |" in page
    assert "| BentoML, 2 processes | 2 × 1 | 32 instances | adaptive, ≤ 60,000 ms |" in page
    assert "| hand-written, 1 process | 1 × one per core | one request | no batching |" in page
    assert "| LitServe, 2 processes | 2 × 1 | 2.5 ms | 800 (250 to 800) |" in page
    assert "| hand-written, 2 processes | 2 × one per core | no batching | 1,000 (400 to 1,000) |" in page


def test_every_server_states_whether_ragged_rows_are_predicted_as_each_alone(results: Results) -> None:
    page = render(results)
    assert "| instances, as measured at load | 0 ms | yes (3e-07) |  |" in page
    assert "| 32 requests | 2.5 ms | no (1e-02) | litserve 0.2 |" in page
    assert "| 32 instances | adaptive, ≤ 60,000 ms | – |  |" in page
    (ragged,) = re.findall(r"### Two LSTM layers.*?\n\n(.*?)\n\n", page, re.DOTALL)
    ends = [row.rpartition(" | ")[2] for row in ragged.splitlines()]
    assert ends == ["ragged rows as each alone |", ends[1], "yes (3e-07) |", "no (1e-02) |", "– |"]


def test_servers_that_are_not_measured_are_listed_with_the_reason(results: Results) -> None:
    page = render(results)
    for name, reason in NOT_MEASURED.items():
        assert f"* **{name}**: {reason}" in page
    assert not NOT_MEASURED.keys() & {rival.name for rival in RIVALS}


def test_every_row_of_a_table_has_as_many_cells_as_its_head(results: Results) -> None:
    tables = re.findall(r"(?:^\|.*\|\n)+", render(results), re.MULTILINE)
    assert len(tables) == 9
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table


def test_results_read_back_are_those_that_were_written(results: Results, tmp_path: Path) -> None:
    results.write(tmp_path / RESULTS)
    assert read_results(tmp_path / RESULTS) == results
    page = write(tmp_path)
    assert (tmp_path / PAGE).read_text() == page == render(results)
    assert (tmp_path / PICTURE).read_bytes() == draw_svg(results)


def test_every_group_of_cases_has_its_panel(results: Results) -> None:
    assert set(PANELS) == {case.group for case in CASES}
    text = draw_svg(results.model_copy(update={"cases": (C64, I256, OPEN)})).decode()
    for group in ("connections", "instances", "open loop"):
        assert PANELS[group].title in text
    assert PANELS["mixed"].title not in text
    assert SLUICE.name in text
    assert "hand-written, 1 process" in text
