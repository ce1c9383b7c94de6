"""Targets are selected by the beginnings of their names, and Sluice is started with its default settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.targets import select_targets, sluice
from service.process.machine import num_cores
from service.settings import read_settings


def test_sluice_gets_only_settings_that_it_knows(tmp_path: Path) -> None:
    command, env = sluice(2).command(tmp_path / "lstm-2x64" / "1", 1234)
    settings = read_settings(env)
    assert command[1:] == ["-m", "service"]
    assert (settings.models, settings.port, settings.workers) == (tmp_path, 1234, 2)


def test_targets_are_selected_by_the_beginnings_of_their_names() -> None:
    counts = sorted({1, num_cores()})
    targets, unavailable = select_targets(["sluice", "hand-written, 1"])
    assert [(target.spec.family, target.spec.num_processes) for target in targets] == [
        *(("sluice", count) for count in counts),
        ("hand-written", 1),
    ]
    assert unavailable == {}
    targets, _ = select_targets(["hand-written tuned"])
    assert [(target.spec.family, target.spec.num_threads) for target in targets] == [("hand-written tuned", 1)] * len(counts)
    with pytest.raises(SystemExit, match="unknown target triton; known targets: Sluice, hand-written"):
        select_targets(["sluice", "triton"])
