"""Asks a running service for predictions, as any client would: JSON over one connection. Knows no benchmark."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from training.errors import TrainingError

TIMEOUT_S = 120.0
MAX_ANSWER_BYTES = 200_000_000


class EvaluationError(TrainingError):
    """A benchmark cannot be scored: the service does not answer, refuses, or answers something else than was asked for."""


class NotServed(EvaluationError):
    """No model of the service takes these requests, by its own words."""


@dataclass
class Service:
    """One service by its URL; counts the rows that it answered and the seconds that they took."""

    url: str
    rows: int = 0
    seconds: float = 0.0
    models: dict[str, None] = field(default_factory=dict)
    """The models that answered, as name/version, in the order of their first answers."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EvaluationError(f"--url: expected http://HOST:PORT, got {self.url!r}")
        connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = connect(parts.hostname, parts.port, timeout=TIMEOUT_S)
        self._prefix = parts.path.rstrip("/")

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def predict(
        self, path: str, instances: Sequence[Any], parameters: Mapping[str, Any], *, model: str = "", batch_size: int = 64
    ) -> list[dict[str, Any]]:
        """The predictions of all instances in their order, asked for in requests of `batch_size`.

        Raises NotServed where the service has no model for them, and EvaluationError for any other refusal, and for an answer
        that holds something else than an object for each instance.
        """
        return [answer for part in _batches(instances, batch_size) for answer in self._predict(path, part, parameters, model)]

    def _predict(self, path: str, instances: Sequence[Any], parameters: Mapping[str, Any], model: str) -> list[dict[str, Any]]:
        body = {"instances": list(instances)} | ({"parameters": dict(parameters)} if parameters else {})
        started = time.perf_counter()
        answer = self._post(path, body | ({"model": model} if model else {}))
        self.seconds += time.perf_counter() - started
        predictions = answer.get("predictions")
        if not isinstance(predictions, list) or len(predictions) != len(instances):
            raise EvaluationError(f"{self.url}{path}: {len(instances)} instances were sent, the answer has other predictions")
        if not all(isinstance(prediction, dict) for prediction in predictions):
            raise EvaluationError(f"{self.url}{path}: a prediction is no object")
        self.rows += len(instances)
        self.models[f"{answer.get('model')}/{answer.get('version')}"] = None
        return predictions

    def describe_models(self, task: str) -> list[dict[str, Any]]:
        """What the service says of each of its models of a task."""
        listed = self._send("GET", "/models").get("models")
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            raise EvaluationError(f"{self.url}/models: expected a list of models, as a Sluice server has one")
        names = [entry.get("name") for entry in listed if entry.get("task") == task]
        return [self._send("GET", f"/models/{quote(str(name))}") for name in dict.fromkeys(names)]

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._send("POST", path, json.dumps(body))

    def _send(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        place = f"{self.url}{path}"
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            self._connection.request(method, self._prefix + path, body, headers)
            response = self._connection.getresponse()
            payload = response.read(MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as exc:
            self._connection.close()
            raise EvaluationError(f"{place}: no answer: {exc or type(exc).__name__}") from exc
        if len(payload) > MAX_ANSWER_BYTES:
            raise EvaluationError(f"{place}: the answer has more than {MAX_ANSWER_BYTES:,} bytes")
        try:
            answer = json.loads(payload)
        except ValueError as exc:
            raise EvaluationError(f"{place}: status {response.status}, and an answer that is no JSON") from exc
        if not isinstance(answer, dict):
            raise EvaluationError(f"{place}: status {response.status}, and an answer that is no object")
        if response.status != 200:
            message = f"{place}: status {response.status}: {answer.get('detail') or answer.get('title') or 'no reason given'}"
            # No model of the name, none that fits, several that fit, or one that takes no such instance.
            raise (NotServed if response.status in (404, 409, 422) else EvaluationError)(message)
        return answer


def _batches(instances: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(instances), size):
        yield instances[start : start + size]
