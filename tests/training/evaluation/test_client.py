"""Requests to a service: in batches and in order, counted, and every refusal told in the service's own words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.training.evaluation.answering import Answer, answering
from training.evaluation.client import EvaluationError, NotServed, Service


def test_instances_are_sent_in_batches_and_answered_in_order() -> None:
    sizes: list[int] = []

    def respond(path: str, body: Any) -> Answer:
        sizes.append(len(body["instances"]))
        predictions = [{"path": path, "value": value, **body["parameters"]} for value in body["instances"]]
        return 200, {"model": "m", "version": "2", "predictions": predictions}

    with answering(respond) as url, Service(url) as service:
        found = service.predict("/predict/x", list(range(10)), {"horizon": 3}, batch_size=4)
    assert [answer["value"] for answer in found] == list(range(10))
    assert found[0] == {"path": "/predict/x", "value": 0, "horizon": 3}
    assert sizes == [4, 4, 2]
    assert (service.rows, list(service.models)) == (10, ["m/2"])
    assert service.seconds > 0


@pytest.mark.parametrize(
    ("status", "content", "kind", "message"),
    [
        (
            404,
            {"detail": "no model for frequency D; there are H"},
            NotServed,
            "status 404: no model for frequency D; there are H",
        ),
        (409, {"detail": "several models fit"}, NotServed, "several models fit"),
        (422, {"title": "Invalid input"}, NotServed, "status 422: Invalid input"),
        (503, {"detail": "overloaded"}, EvaluationError, "status 503: overloaded"),
        (200, b"<html>", EvaluationError, "an answer that is no JSON"),
        (200, [], EvaluationError, "an answer that is no object"),
        (200, {"predictions": [1]}, EvaluationError, "2 instances were sent, the answer has other predictions"),
        (200, {}, EvaluationError, "the answer has other predictions"),
        (200, {"predictions": [{}, 0.5]}, EvaluationError, "a prediction is no object"),
    ],
)
def test_what_is_no_answer_is_an_error_that_says_so(status: int, content: Any, kind: type[EvaluationError], message: str) -> None:
    with (
        answering(lambda path, body: (status, content)) as url,
        Service(url) as service,
        pytest.raises(EvaluationError, match=message) as caught,
    ):
        service.predict("/predict", [1, 2], {})
    assert type(caught.value) is kind


def test_a_service_that_is_not_there_is_an_error() -> None:
    with answering(lambda path, body: (200, {})) as url:
        pass
    with pytest.raises(EvaluationError, match="no answer"):
        Service(url).predict("/predict", [1], {})


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(EvaluationError, match="expected http://HOST:PORT"):
        Service(url)


def test_models_are_described_by_task() -> None:
    listed = {"models": [{"name": "a", "task": "classify"}, {"name": "b", "task": "forecast"}, {"name": "a", "task": "classify"}]}

    def respond(path: str, body: Any) -> Answer:
        return 200, listed if path == "/models" else {"name": path.rpartition("/")[2]}

    with answering(respond) as url, Service(url) as service:
        assert json.dumps(service.describe_models("classify")) == '[{"name": "a"}]'


@pytest.mark.parametrize("listed", [{}, {"models": None}, {"models": ["a"]}, {"models": {"a": 1}}])
def test_a_list_of_models_that_is_none_is_an_error(listed: Any) -> None:
    with (
        answering(lambda path, body: (200, listed)) as url,
        Service(url) as service,
        pytest.raises(EvaluationError, match="/models: expected a list of models"),
    ):
        service.describe_models("classify")
