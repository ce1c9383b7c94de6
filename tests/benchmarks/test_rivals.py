"""Every rival serves the same graph: its predictions are the graph's outputs, for single, large and concurrent requests."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from benchmarks.rivals import RIVALS, Rival
from benchmarks.rivals.environments import environment, is_complete
from benchmarks.rivals.graph import Graph
from benchmarks.servers import ROOT, Server, free_port, running

FOLDERS = {"forecast": ROOT / "models" / "forecast-hourly" / "1", "classify": ROOT / "models" / "sentiment-en" / "1"}
WORDS = ("a", "film", "of", "quiet", "horror", "and", "great", "joy", "that", "nobody", "should", "ever", "have", "to", "miss")


def instances(task: str, sizes: Sequence[int]) -> list[Any]:
    """Instances of so many steps or words."""
    if task == "classify":
        return [" ".join(WORDS[(word * size) % len(WORDS)] for word in range(size)) for size in sizes]
    return [{"history": [round(100 + 40 * (step % 24) / 24 + step % size, 2) for step in range(size)]} for size in sizes]


def test_of_a_long_text_the_head_and_the_tail_are_read() -> None:
    graph = Graph(FOLDERS["classify"], num_threads=1)
    words = instances("classify", [1500])[0].split()
    head, middle, tail = (" ".join([*words[:at], "awful", *words[at + 1 :]]) for at in (10, 750, 1490))
    predictions = graph.run_texts([" ".join(words), middle, head, tail])
    assert predictions[0] == predictions[1]
    assert predictions[0] != predictions[2]
    assert predictions[0] != predictions[3]


def test_a_row_of_a_ragged_run_is_the_row_alone() -> None:
    graph = Graph(FOLDERS["forecast"], num_threads=1)
    histories = [instance["history"] for instance in instances("forecast", [200, 336, 170])]
    for together, history in zip(graph.run(histories), histories, strict=True):
        assert_equal([together], graph.run([history]))


def cases() -> Iterator[Any]:
    """Each rival with each task: with two processes, and the hand-written ones, which start fast, with one too."""
    for rival in RIVALS:
        for task in FOLDERS:
            if not rival.packages:
                yield pytest.param((rival, task, 1), id=f"{rival.name}-{task}-1")
            yield pytest.param((rival, task, 2), id=f"{rival.name}-{task}-2", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=cases())
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Rival, Server, str, Graph]]:
    rival, task, num_processes = request.param
    if not is_complete(rival):
        pytest.skip(f"{rival.name} has no environment; python -m benchmarks.rivals creates it")
    port = free_port()
    command, env = rival.command(environment(rival), FOLDERS[task], port, num_processes)
    graph = Graph(FOLDERS[task], num_threads=1)
    with running(rival.name, command, port, env, ready_path=rival.ready_path, timeout_s=120) as server:
        yield rival, server, task, graph
    assert not server.members()


@pytest.mark.parametrize("sizes", [[336], [336] * 16, [200, 336, 180, 300]], ids=["one", "sixteen", "ragged"])
def test_predictions_are_the_graphs_outputs(served: tuple[Rival, Server, str, Graph], sizes: list[int]) -> None:
    rival, server, task, graph = served
    sent = instances(task, sizes)
    assert_equal(predict(rival, server, task, sent), graph.predict(sent))


def test_predictions_of_concurrent_requests_of_different_lengths_are_the_graphs_outputs(
    served: tuple[Rival, Server, str, Graph],
) -> None:
    rival, server, task, graph = served
    requests = [instances(task, [170 + 9 * index] * (1 + index % 2)) for index in range(16)]
    with ThreadPoolExecutor(len(requests)) as pool:
        responses = list(pool.map(lambda sent: predict(rival, server, task, sent), requests))
    for sent, predictions in zip(requests, responses, strict=True):
        assert_equal(predictions, graph.predict(sent))


def predict(rival: Rival, server: Server, task: str, sent: Sequence[Any]) -> list[dict[str, Any]]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.url + rival.path, rival.body(task, sent), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return rival.predictions(response.read())


def assert_equal(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            np.testing.assert_allclose(value, other[name], rtol=1e-5, atol=1e-5)
