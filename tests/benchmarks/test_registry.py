"""The registry's batching and threads are what a server is started with: nothing is written a second time."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.rivals import RIVALS, Rival
from benchmarks.rivals.options import Batching, Options, read_options
from benchmarks.servers import ROOT
from benchmarks.targets import from_rival

FOLDER = ROOT / "models" / "forecast-hourly" / "1"
RIVALS_FOLDER = ROOT / "benchmarks" / "rivals"
SERVER_FILES = sorted([*RIVALS_FOLDER.glob("*_server.py"), *RIVALS_FOLDER.glob("handwritten*.py")])


@pytest.mark.parametrize(
    "options",
    [Options(FOLDER, 2, None, None), Options(FOLDER, 3, 1, Batching(32, "requests", 2.5, is_adaptive=True))],
    ids=["no batching", "batching"],
)
def test_options_read_from_the_environment_are_those_written(options: Options) -> None:
    assert read_options(options.to_environ()) == options


def test_a_server_without_options_does_not_start() -> None:
    with pytest.raises(KeyError, match="RIVAL_OPTIONS"):
        read_options({})


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
def test_a_rival_is_started_with_the_batching_and_threads_of_the_registry(rival: Rival) -> None:
    batching = None if rival.batching is None else Batching(7, rival.batching.unit, 13.0)
    changed = replace(rival, batching=batching, num_threads=5)
    _, env = changed.command(Path("python"), FOLDER, 1234, 3)
    assert read_options(env) == Options(FOLDER, 3, 5, batching)


def test_mlservers_own_settings_are_those_of_the_registry() -> None:
    (mlserver,) = (rival for rival in RIVALS if rival.name == "MLServer")
    _, env = replace(mlserver, batching=Batching(7, "requests", 13.0)).command(Path("python"), FOLDER, 1234, 3)
    assert (env["MLSERVER_MODEL_MAX_BATCH_SIZE"], env["MLSERVER_MODEL_MAX_BATCH_TIME"]) == ("7", "0.013")
    assert env["MLSERVER_PARALLEL_WORKERS"] == "3"


@pytest.mark.parametrize("path", SERVER_FILES, ids=lambda path: path.name)
def test_a_server_file_sets_batching_and_threads_from_its_options_alone(path: Path) -> None:
    text = path.read_text()
    assert "read_options(" in text
    assert not re.search(r"(batch_size|batch_timeout|wait_timeout_s|max_latency_ms|num_threads)\s*=\s*[\d.]", text)


def test_a_target_is_described_by_the_rivals_configuration() -> None:
    rival = RIVALS[0]
    spec = from_rival(replace(rival, batching=Batching(7, "requests", 13.0), num_threads=5), 3, Path(sys.executable)).spec
    assert (spec.num_processes, spec.num_threads, spec.batching) == (3, 5, Batching(7, "requests", 13.0))
