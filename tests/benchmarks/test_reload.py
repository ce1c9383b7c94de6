from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.reload import is_close, is_equal
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
    assert is_equal([1.0], 200, b'{"predictions": [1.0]}')
    assert not is_equal([1.0], 503, b'{"predictions": [1.0]}')


@pytest.mark.slow
def test_no_request_fails_or_is_answered_wrongly_while_models_come_and_go() -> None:
    # What it measures besides is not compared here: this machine does other things too.
    command = [sys.executable, "-m", "benchmarks.reload", "--rounds", "1", "--seconds", "1", "--changes", "12"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert "passed: requests that failed or were answered wrongly: 0" in found.stdout, found.stdout + found.stderr
