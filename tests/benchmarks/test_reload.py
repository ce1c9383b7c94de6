from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.protocol_requests import read_binary_answer
from benchmarks.reload import is_close, is_equal, unless_gone
from benchmarks.traffic import FORECAST, SENTIMENT
from tests.folders import write_forecast_folder, write_text_folder
from tests.serving import ROOT


@pytest.mark.parametrize(
    ("found", "is_same"),
    [
        ([{"forecast": [1.0, 2.00001]}], True),
        ([{"forecast": [1.0, 2.1]}], False),
        ([{"forecast": [1.0]}], False),
        ([{"forecast": [1.0, None]}], False),
        ([{"mean": [1.0, 2.0]}], False),
        ([], False),
    ],
)
def test_an_answer_is_the_expected_one_but_for_rounding(found: object, is_same: bool) -> None:
    assert is_close(found, [{"forecast": [1.0, 2.0]}]) is is_same


def test_an_error_is_not_the_expected_answer() -> None:
    assert is_equal(json.loads, [1.0], 200, b"[1.0]")
    assert not is_equal(json.loads, [1.0], 503, b"[1.0]")


def test_a_model_that_comes_and_goes_is_answered_rightly_or_is_not_there() -> None:
    check = unless_gone(functools.partial(is_equal, json.loads, [1.0]))
    found = [
        check(200, b"[1.0]"),
        check(404, b'{"code":"model_not_found"}'),
        check(503, b'{"code":"model_not_ready"}'),
        check(200, b"[2.0]"),
        check(503, b'{"code":"overloaded"}'),
        check(500, b'{"code":"internal_error"}'),
    ]
    assert found == [True, True, True, False, False, False]


def test_a_binary_answer_is_read_to_its_last_byte() -> None:
    head = {"outputs": [{"name": "a", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}]}
    answer = json.dumps(head, separators=(",", ":")).encode() + np.array([1, 2], np.float32).tobytes()
    assert read_binary_answer(answer) == [["a", [2], [1.0, 2.0]]]
    with pytest.raises(ValueError, match="1 bytes are left"):
        read_binary_answer(answer + b"x")


def run(*arguments: str, timeout_s: float) -> str:
    command = [sys.executable, "-m", "benchmarks.reload", *arguments]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)
    return found.stdout + found.stderr


# What is measured besides is not compared in these: the machine does other things too.


def test_no_request_of_any_api_fails_or_is_answered_wrongly_while_models_come_change_and_go(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path, FORECAST, context_length=168)  # small ones: each change loads a model
    write_text_folder(tmp_path, SENTIMENT)
    arguments = ("--models", str(tmp_path), "--rounds", "0", "--changes", "4", "--idle", "0", "--connections", "2")
    output = run(*arguments, timeout_s=240)
    assert "passed: requests that failed or were answered wrongly: 0" in output, output
    kinds = dict(each.rsplit(" ", 1) for each in output.splitlines()[1].split("; "))
    assert len(kinds) == 10, output
    assert all(int(count) > 0 for count in kinds.values()), output


@pytest.mark.slow
def test_no_request_fails_and_memory_stays_over_a_hundred_changes() -> None:
    output = run("--rounds", "0", "--changes", "100", timeout_s=900)
    assert "passed: requests that failed or were answered wrongly: 0" in output, output
    assert "passed: memory after the changes" in output, output
