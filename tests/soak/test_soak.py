"""A soak of seconds, and each of its rules on records that break it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.soak.clients import Outcome, Record, classify
from tests.soak.faults import Fault, FaultKind, is_explained, schedule
from tests.soak.report import NUM_ROWS, Sample, Soak
from tests.soak.run import run
from tests.soak.traffic import Message, differences


def test_a_killed_a_stopped_and_a_restarted_server_lose_what_was_on_their_connections_and_nothing_else(tmp_path: Path) -> None:
    soak = run(duration_s=6, num_clients=12, seed=1, num_messages=6)
    assert soak.broken_rules() == [], soak.table()
    assert [fault.kind for fault in soak.faults] == ["kill", "stop", "restart"]
    assert {record.outcome for record in soak.records} >= {"answered", "left"}
    soak.write(tmp_path / "soak.json")
    assert sum(row["requests"] for row in json.loads((tmp_path / "soak.json").read_text())["rows"]) > 100


@pytest.mark.slow
def test_a_minute_of_faults_and_a_restart_break_no_rule() -> None:
    soak = run(duration_s=60, num_clients=30, seed=2)
    assert soak.broken_rules() == [], soak.table()
    assert {fault.kind for fault in soak.faults} == {"kill", "stop", "restart"}
    assert soak.growth() is not None


def record(outcome: Outcome, *, connected_at: float = 0.0, ended_at: float = 1.0, is_refused_connection: bool = False) -> Record:
    return Record("forecast", outcome, connected_at, connected_at, ended_at, "what happened", is_refused_connection)


@pytest.mark.parametrize(
    ("kind", "lost", "expected"),
    [
        ("kill", record("broken", connected_at=9, ended_at=10.1), True),
        ("kill", record("broken", connected_at=0, ended_at=10.0), True),
        ("kill", record("broken", connected_at=9, ended_at=9.9), False),  # before it
        ("kill", record("broken", connected_at=9, ended_at=14.0), False),  # long after it
        ("kill", record("broken", connected_at=11.1, ended_at=11.2), False),  # connected to what was whole again
        ("kill", record("broken", connected_at=10, ended_at=10.1, is_refused_connection=True), False),  # another worker serves
        ("restart", record("broken", connected_at=10, ended_at=10.5, is_refused_connection=True), True),
        ("restart", record("broken", connected_at=9, ended_at=9.5, is_refused_connection=True), False),
        ("stop", record("broken", connected_at=9, ended_at=10.5), False),
    ],
)
def test_a_fault_explains_what_broke_during_it_and_nothing_else(kind: FaultKind, lost: Record, expected: bool) -> None:
    assert is_explained(lost, [Fault(kind, 10.0, 11.0)]) is expected


KILL = Fault("kill", 10.0, 10.0)


def soak_of(*records: Record, faults: Sequence[Fault] = (), memory: Sequence[Sample] = (), problems: Sequence[str] = ()) -> Soak:
    """A run of two clients and 100 seconds, with some requests that were answered."""
    answered = [record("answered") for _ in range(5)]
    return Soak(0.0, 100.0, [*answered, *records], list(faults), list(memory), 2, list(problems))


def test_a_run_in_which_all_is_answered_breaks_no_rule() -> None:
    lost = record("broken", connected_at=9, ended_at=10.1)
    assert soak_of(record("left"), record("refused"), lost, faults=[KILL]).broken_rules() == []


@pytest.mark.parametrize(
    ("soak", "words"),
    [
        (soak_of(record("wrong")), "wrong answer"),
        (soak_of(record("broken")), "no fault explains it"),
        (
            soak_of(*[record("broken", connected_at=9, ended_at=10.1)] * 3, faults=(Fault("kill", 10.0, 10.0),)),
            "lost by one kill",
        ),
        (soak_of(problems=["a worker hung"]), "a worker hung"),
        (soak_of(memory=[Sample(at, 100.0 if at < 80 else 140.0) for at in range(100)]), "memory grew by 40%"),
        (Soak(0.0, 100.0, [record("left")], [], [], 1), "no request was answered"),
    ],
)
def test_each_rule_is_broken_by_some_run(soak: Soak, words: str) -> None:
    assert any(words in problem for problem in soak.broken_rules())
    assert "FAILED" in soak.table()


def test_the_report_counts_every_request_once() -> None:
    kinds: tuple[Outcome, ...] = ("answered", "refused", "left", "wrong", "broken")
    soak = soak_of(*(record(kind, ended_at=float(at)) for kind in kinds for at in range(0, 100, 7)))
    rows = soak.rows()
    assert len(rows) == NUM_ROWS
    assert sum(row["requests"] for row in rows) == len(soak.records)
    counted = ("answered", "refused", "left", "wrong", "explained", "unexplained")
    assert all(row["requests"] == sum(row[name] for name in counted) for row in rows)


@pytest.mark.parametrize("duration_s", [6, 20, 60, 600, 3600])
def test_faults_come_in_order_and_restarts_leave_time_to_watch_the_memory(duration_s: float) -> None:
    planned = list(schedule(duration_s))
    times = [at for at, _ in planned]
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < duration_s
    assert {"kill", "stop"} <= {kind for _, kind in planned}
    if duration_s >= 60:
        restarts = [at for at, kind in planned if kind == "restart"]
        assert restarts
        assert max(restarts) <= 0.4 * duration_s


ALONE = [{"forecast": [100.0, 200.0], "label": "a", "score": 0.5}]


@pytest.mark.parametrize(
    ("found", "is_same"),
    [
        (ALONE, True),
        ([{"forecast": [100.001, 200.0], "label": "a", "score": 0.500001}], True),
        ([{"forecast": [100.01, 200.0], "label": "a", "score": 0.5}], False),
        ([{"forecast": [100.0], "label": "a", "score": 0.5}], False),
        ([{"forecast": [100.0, 200.0], "label": "b", "score": 0.5}], False),
        ([{"forecast": [100.0, 200.0], "label": "a", "score": 0.50001}], False),
        ([{"forecast": [100.0, 200.0], "label": "a"}], False),
        ([{"forecast": [100.0, None], "label": "a", "score": 0.5}], False),
        ([], False),
    ],
)
def test_an_answer_is_compared_number_by_number(found: Any, is_same: bool) -> None:
    assert (not list(differences(found, ALONE))) is is_same
    message = Message("forecast", b"", 200, ALONE)
    assert classify(message, 200, json.dumps({"predictions": found}).encode())[0] == ("answered" if is_same else "wrong")


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (503, {"code": "overloaded"}, "refused"),
        (504, {"code": "deadline_exceeded"}, "refused"),
        (503, {"code": "anything"}, "wrong"),
        (500, {"code": "internal_error"}, "wrong"),
        (422, {"code": "invalid_input"}, "wrong"),
    ],
)
def test_a_refusal_needs_its_reason(status: int, body: dict[str, str], outcome: Outcome) -> None:
    assert classify(Message("forecast", b"", 200, ALONE), status, json.dumps(body).encode())[0] == outcome


def test_an_answer_that_is_promised_bit_by_bit_may_not_differ_by_rounding() -> None:
    exact = Message("lstm", b"", 200, [[0.5]], is_exact=True)
    assert classify(exact, 200, b'{"predictions": [[0.5]]}')[0] == "answered"
    assert classify(exact, 200, b'{"predictions": [[0.50000001]]}')[0] == "wrong"
