"""One request of each API for the same models, and how to read from its answer what must not change.

Builds requests; sends nothing.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.traffic import RequestBodies, post

JSON_LENGTH = "Inference-Header-Content-Length"
NUM_STEPS = 168


class KindOfRequest(NamedTuple):
    """One request of an API."""

    name: str
    model: str
    message: bytes
    read: Callable[[bytes], Any]
    """The numbers and labels of an answer, without versions, times and names that are made up."""


def every_kind(models: Path, num_each: int, names: Mapping[str, str], seed: int = 1) -> Iterator[KindOfRequest]:
    """Requests of every API, `num_each` of each, the kinds in turn.

    `names` are those of the models: `forecast`, its copy `visitor`, and `texts`, a classifier.
    """
    bodies = RequestBodies(models, seed)
    forecaster, visitor, classifier = names["forecast"], names["visitor"], names["texts"]
    kinds: tuple[Callable[[], KindOfRequest], ...] = (
        lambda: _predict("predict forecasts", forecaster, [{"history": each} for each in _histories(bodies, 2)]),
        lambda: _predict("predict texts", classifier, bodies.sentiment(2, 40)["instances"]),
        lambda: _infer_json(forecaster, _histories(bodies, 1)),
        lambda: _infer_binary(forecaster, _histories(bodies, 3)),
        lambda: _infer_texts(classifier, bodies.sentiment(2, 30)["instances"]),
        lambda: _kserve_v1(classifier, bodies.sentiment(1, 60)["instances"]),
        lambda: _invocations(classifier, bodies.sentiment(3, 20)["instances"]),
        lambda: _timeseries(forecaster, _histories(bodies, 1)),
        lambda: _nixtla(forecaster, _histories(bodies, 2)),
        lambda: _predict("predict, coming and going", visitor, [{"history": each} for each in _histories(bodies, 1)]),
    )
    for _ in range(num_each):
        yield from (make() for make in kinds)


def _histories(bodies: RequestBodies, count: int) -> list[list[float]]:
    return [bodies.series(NUM_STEPS) for _ in range(count)]


def _json_kind(name: str, model: str, path: str, body: Any, *fields: str) -> KindOfRequest:
    def read(answer: bytes) -> Any:
        content = json.loads(answer)
        return [content[field] for field in fields]

    return KindOfRequest(name, model, post(path, json.dumps(body).encode()), read)


def _predict(name: str, model: str, instances: list[Any]) -> KindOfRequest:
    return _json_kind(name, model, "/predict", {"model": model, "instances": instances}, "predictions")


def _kserve_v1(model: str, instances: list[Any]) -> KindOfRequest:
    return _json_kind("v1 texts", model, f"/v1/models/{model}:predict", {"instances": instances}, "predictions")


def _invocations(model: str, texts: list[str]) -> KindOfRequest:
    frame = {"columns": ["text"], "data": [[text] for text in texts]}
    body = {"dataframe_split": frame, "params": {"model": model}}
    return _json_kind("invocations texts", model, "/invocations", body, "predictions")


def _timeseries(model: str, histories: list[list[float]]) -> KindOfRequest:
    inputs = [{"type": "univariate_time_series", "name": "a", "series": each, "frequency": "H"} for each in histories]
    body = {"model": model, "inputs": inputs, "options": {"horizon": 24, "quantiles": [0.1, 0.9]}}
    return _json_kind("timeseries forecasts", model, "/v1/timeseries/forecast", body, "outputs")


def _nixtla(model: str, histories: list[list[float]]) -> KindOfRequest:
    series = {"y": list(itertools.chain.from_iterable(histories)), "sizes": list(map(len, histories))}
    body = {"series": series, "model": model, "h": 24, "freq": "h", "level": [80]}
    return _json_kind("nixtla forecasts", model, "/v2/forecast", body, "mean", "intervals")


def infer_path(model: str) -> str:
    """Where tensors are sent to a model."""
    return f"/v2/models/{model}/infer"


def infer_json(histories: Sequence[Sequence[float]]) -> bytes:
    """The body for histories of one length as a tensor in JSON."""
    tensor = _history(histories) | {"data": list(itertools.chain.from_iterable(histories))}
    return json.dumps({"inputs": [tensor]}).encode()


def infer_binary(histories: Sequence[Sequence[float]]) -> tuple[bytes, bytes]:
    """The same as binary data, which the answer is to be, too: the JSON, whose length a header tells, and the numbers."""
    return _binary(_history(histories), np.array(histories, np.float32).tobytes())


def _history(histories: Sequence[Sequence[float]]) -> dict[str, Any]:
    return {"name": "history", "datatype": "FP32", "shape": [len(histories), len(histories[0]), 1]}


def _binary(tensor: Mapping[str, Any], data: bytes) -> tuple[bytes, bytes]:
    tensor = {**tensor, "parameters": {"binary_data_size": len(data)}}
    return json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode(), data


def _infer_json(model: str, histories: list[list[float]]) -> KindOfRequest:
    def read(answer: bytes) -> Any:
        return json.loads(answer)["outputs"]

    return KindOfRequest("v2 forecasts as JSON", model, post(infer_path(model), infer_json(histories)), read)


def _infer_texts(model: str, texts: list[str]) -> KindOfRequest:
    encoded = [text.encode() for text in texts]
    data = b"".join(struct.pack("<I", len(text)) + text for text in encoded)
    return _binary_kind(
        "v2 texts as binary data", model, *_binary({"name": "text", "datatype": "BYTES", "shape": [len(texts)]}, data)
    )


def _infer_binary(model: str, histories: list[list[float]]) -> KindOfRequest:
    return _binary_kind("v2 forecasts as binary data", model, *infer_binary(histories))


def _binary_kind(name: str, model: str, head: bytes, data: bytes) -> KindOfRequest:
    headers = f"Content-Type: application/octet-stream\r\n{JSON_LENGTH}: {len(head)}"
    return KindOfRequest(name, model, post(infer_path(model), head + data, headers=headers), read_binary_answer)


def read_binary_answer(answer: bytes) -> list[Any]:
    """Name, shape and values of each output of an answer whose outputs are all binary; strings as they lie."""
    text, _, _ = answer.partition(b"}]}")
    head = json.loads(text + b"}]}")
    place = len(text) + 3
    outputs = []
    for output in head["outputs"]:
        size = output["parameters"]["binary_data_size"]
        part = answer[place : place + size]
        values: Any = part.decode("latin-1") if output["datatype"] == "BYTES" else np.frombuffer(part, np.float32).tolist()
        outputs.append([output["name"], output["shape"], values])
        place += size
    if place != len(answer):
        raise ValueError(f"{len(answer) - place} bytes are left behind the last output")
    return outputs
