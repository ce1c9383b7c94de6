"""Hundreds of clients at once, some of which leave or send nonsense: each answer is the one that its request gets alone."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import lstm_signature, recurrent_graph
from tests.folders import edit_example, edit_manifest, run_graph, write_graph, write_tensor_folder
from tests.fuzz import monitor
from tests.fuzz.campaign import served_models
from tests.serving import server_process
from tests.soak.clients import Client, Record, Records, record_alone
from tests.soak.traffic import Message, messages, post

pytestmark = pytest.mark.resilience

KINDS = ("patient",) * 15 + ("slow",) * 2 + ("leaving",) * 5 + ("oversize", "reading")
NUM_CLIENTS = 240
NUM_REQUESTS = 2_000
UNITS, FEATURES = 4, 2


def write_lstm_folder(models: Path) -> None:
    """`toy-lstm`: answers with the states of one LSTM, which are promised to be the same bit by bit in any batch."""
    folder = write_tensor_folder(models, "toy-lstm")
    signature = lstm_signature(UNITS, FEATURES)

    def describe(manifest: dict[str, object]) -> None:
        for key, specs in (("inputs", signature.inputs), ("outputs", signature.outputs)):
            manifest[key] = [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]
        manifest["state"] = [{"input": before, "output": after} for before, after in signature.state]

    edit_manifest(folder, describe)
    write_graph(folder, recurrent_graph("LSTM", UNITS, FEATURES))
    row = np.array([[0.5, -1.0], [0.25, 2.0]])
    states = {"h0": np.zeros((1, UNITS)), "c0": np.zeros((1, UNITS))}
    answer = run_graph(folder, {"history": row[None], "lengths": np.array([2]), **states})["sequence"][0]

    def replay(example: dict[str, dict[str, object]]) -> None:
        example["request"]["instances"] = [row.tolist()]
        example["response"]["predictions"] = [answer.tolist()]

    edit_example(folder, replay)


def lstm_messages(seed: int, count: int) -> list[Message]:
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        rows = [
            [[round(draw.gauss(0, 1), 3) for _ in range(FEATURES)] for _ in range(draw.randint(1, 80))]
            for _ in range(draw.choice((1, 1, 1, 5)))
        ]
        body = json.dumps({"model": "toy-lstm", "instances": rows}).encode()
        found.append(Message("lstm", post("/predict", body), is_exact=True))
    return found


async def send_together(address: tuple[str, int], pool: list[Message], seed: int) -> list[Record]:
    """All clients at once, until so many requests are over."""
    records = Records(limit=NUM_REQUESTS)
    clients = [Client(KINDS[number % len(KINDS)], address, pool, records, seed + number) for number in range(NUM_CLIENTS)]
    await asyncio.gather(*(client.run() for client in clients))
    return records.found


@pytest.mark.parametrize("fast_path", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_each_of_hundreds_of_clients_gets_the_answer_that_its_request_gets_alone(fast_path: str) -> None:
    with served_models() as models:
        write_lstm_folder(models)
        patient = "60000"  # so that each request may be answered, on whatever machine
        with server_process(models, SLUICE_WORKERS="2", SLUICE_FAST_PATH=fast_path, SLUICE_REQUEST_TIMEOUT_MS=patient) as server:
            host, port = server.url.removeprefix("http://").split(":")
            address = host, int(port)
            unanswered = [*messages(models, seed=5, num_each=15), *lstm_messages(seed=5, count=40)]
            pool = asyncio.run(record_alone(address, unanswered))
            assert {message.status for message in pool} == {200, 400, 404, 422}
            assert all(message.status == 200 for message in pool if message.is_exact)
            records = asyncio.run(send_together(address, pool, seed=5))
            assert [record for record in records if record.outcome in ("wrong", "broken")] == []
            counts = Counter((record.kind, record.outcome) for record in records)
            for kind in ("forecast", "sentiment", "tensor", "lstm", "bad", "slow", "oversize"):
                assert counts[kind, "answered"] > 0, counts
            assert counts["leaving", "left"] > 0
            assert monitor.wait_until_idle(address) == []
            assert monitor.unforeseen_lines(server.log) == []
