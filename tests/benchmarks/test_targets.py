"""Targets are selected by the beginnings of their names, and Sluice is started with its default settings."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.cases import select_cases
from benchmarks.protocol_requests import JSON_LENGTH
from benchmarks.rivals import RIVALS
from benchmarks.targets import from_rival, select_targets, sluice
from benchmarks.workloads import draw_requests
from service.process.machine import num_cores
from service.settings import read_settings


def test_sluice_gets_only_settings_that_it_knows(tmp_path: Path) -> None:
    command, env = sluice(2).command(tmp_path / "lstm-2x64" / "1", 1234)
    settings = read_settings(env)
    assert command[1:] == ["-m", "service"]
    assert (settings.models, settings.port, settings.workers) == (tmp_path, 1234, 2)


def test_sluice_gets_a_case_of_the_open_inference_protocol_as_json_and_as_binary_data() -> None:
    target = sluice(1)
    json_case, binary_case = select_cases(["v2", "v2b64"])
    for case in (json_case, binary_case):
        assert case.api in target.apis
        assert target.path(case) == "/v2/models/lstm-2x64/infer"
        first, *others = draw_requests(case)
        body = target.body(case, first)
        size = int(target.headers(case).get(JSON_LENGTH, len(body)))
        (tensor,) = json.loads(body[:size])["inputs"]
        assert tensor["shape"] == [case.num_instances, 168, 1]
        # wrk sends the same headers with every body.
        assert {len(target.body(case, request)) for request in others} == {len(body)} or case is json_case
    assert target.headers(json_case) == {}
    assert len(body) - size == 64 * 168 * 4


def test_a_rival_is_sent_what_it_understands() -> None:
    apis = {rival.name: from_rival(rival, 1, Path(sys.executable)).apis for rival in RIVALS if not rival.packages}
    assert set(apis.values()) == {("predict",)}


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
