"""Other wire formats in the whole app: the predictions of `/predict`, and errors in the shape that each format has."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from service.api.access.keys import describe_entry, new_key
from service.api.adapters.base import Adapter
from service.api.adapters.invocations import Invocations
from service.api.adapters.nixtla import Nixtla
from service.api.adapters.timeseries import TimeSeries
from service.app import create_app
from service.errors import MalformedRequest, PayloadTooLarge, StartError
from service.settings import Settings
from tests.folders import write_forecast_folder, write_text_folder
from tests.serving import client_of
from tests.streams import cells, write_forecast_stream

pytestmark = pytest.mark.asyncio(loop_scope="module")
HISTORY = [1.0, 2.0, 3.0, 2.5, 4.0]
OTHER = [2.0, 1.0, 2.0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    folder = tmp_path_factory.mktemp("models")
    write_forecast_folder(folder)
    write_text_folder(folder)
    routes = {"vertex_predict_route": "/v1/endpoints/7:predict", "vertex_health_route": "/v1/endpoints/7"}
    async with client_of(folder, max_instances=5, **routes) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alone(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """A server of one model, as a container for one has it."""
    folder = tmp_path_factory.mktemp("models")
    write_text_folder(folder)
    async with client_of(folder) as client:
        yield client


async def predicted(client: httpx.AsyncClient, model: str, instances: list[Any], **parameters: Any) -> list[Any]:
    body = {"model": model, "instances": instances, "parameters": parameters}
    found: list[Any] = (await client.post("/predict", json=body)).json()["predictions"]
    return found


@pytest.mark.parametrize("path", ["/v1/models/toy-forecast:predict", "/v1/models/toy-forecast/versions/1:predict"])
async def test_kserve_v1_and_tensorflow_serving_send_rows(client: httpx.AsyncClient, path: str) -> None:
    instances = [{"history": HISTORY}, {"history": OTHER}]
    body = {"signature_name": "serving_default", "instances": instances, "parameters": {"horizon": 2}}
    answer = await client.post(path, json=body)
    assert answer.json() == {"predictions": await predicted(client, "toy-forecast", instances, horizon=2)}


async def test_kserve_v1_lists_models_and_says_whether_one_answers(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models")).json() == {"models": ["toy-forecast", "toy-sentiment"]}
    about = (await client.get("/v1/models/toy-forecast")).json()
    assert (about["name"], about["ready"]) == ("toy-forecast", True)
    [status] = about["model_version_status"]
    assert (status["version"], status["state"], status["status"]["error_code"]) == ("1", "AVAILABLE", "OK")


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["text"], "index": [0, 1], "data": [["good film"], ["bad plot"]]}},
        {"dataframe_records": [{"text": "good film"}, {"text": "bad plot"}]},
        {"instances": ["good film", "bad plot"]},
        {"inputs": ["good film", "bad plot"]},
        {"inputs": {"text": ["good film", "bad plot"]}},
        {"dataframe_split": {"columns": [0], "data": [["good film"], ["bad plot"]]}},
    ],
    ids=["split", "records", "instances", "inputs", "columns", "series"],
)
async def test_mlflow_and_sagemaker_invoke_the_only_model(alone: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answer = await alone.post("/invocations", json=body)
    assert answer.json() == {"predictions": await predicted(alone, "toy-sentiment", ["good film", "bad plot"])}
    assert (await alone.get("/ping")).status_code == 200


async def test_of_several_models_an_invocation_names_one(client: httpx.AsyncClient) -> None:
    answer = await client.post("/invocations", json={"inputs": ["good film"]})
    assert answer.status_code == 409
    assert answer.json()["error_code"] == "BAD_REQUEST"
    answer = await client.post("/invocations", json={"inputs": ["good film"], "params": {"model": "toy-sentiment"}})
    assert answer.status_code == 200


async def test_vertex_ai_predicts_at_the_route_that_it_chose(client: httpx.AsyncClient) -> None:
    body = {"instances": [{"history": HISTORY}], "parameters": {"model": "toy-forecast", "horizon": 3}}
    answer = (await client.post("/v1/endpoints/7:predict", json=body)).json()
    assert answer["predictions"] == await predicted(client, "toy-forecast", [{"history": HISTORY}], horizon=3)
    assert (await client.get("/v1/endpoints/7")).status_code == 200


async def test_vertex_ai_at_the_route_of_predict_leaves_the_errors_below_as_they_are(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    async with client_of(tmp_path, vertex_predict_route="/predict") as client:
        assert (await client.post("/predict", json={"instances": 3})).json().keys() == {"error"}
        assert (await client.post("/predict/forecast", json={"instances": 3})).json()["code"] == "malformed_request"


async def test_vertex_ai_probes_without_a_key_where_others_need_one(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path / "models")
    file = tmp_path / "keys.toml"
    file.write_text(describe_entry(new_key(), "a", scopes=["predict"]))
    routes = {"vertex_predict_route": "/v1/endpoints/7:predict", "vertex_health_route": "/v1/endpoints/7"}
    for protects_operations, status in ((False, 200), (True, 401)):
        options: dict[str, Any] = {"api_keys_file": file, "protect_operations": protects_operations, **routes}
        async with client_of(tmp_path / "models", **options) as client:
            assert (await client.get("/v1/endpoints/7")).status_code == status
            assert (await client.get("/v1/models")).status_code == 401
            assert (await client.post("/v1/endpoints/7:predict", json={})).status_code == 401


@pytest.mark.parametrize("route", ["/predict", "/models", "/models/a", "/v1/models", "/v1/p", "/docs", "/static/a.css"])
async def test_a_probe_has_no_route_of_something_else(route: str) -> None:
    with pytest.raises(StartError, match=f"SLUICE_VERTEX_HEALTH_ROUTE={route}"):
        create_app(Settings(vertex_predict_route="/v1/p", vertex_health_route=route))
    create_app(Settings(vertex_health_route="/health/ready"))


async def test_a_series_of_kserves_time_series_protocol_is_forecast(client: httpx.AsyncClient) -> None:
    given = {"type": "univariate_time_series", "name": "load", "series": HISTORY, "frequency": "H"}
    given["start_timestamp"] = "2024-01-01T00:00:00"
    body = {"model": "toy-forecast", "inputs": [given, {**given, "series": OTHER}], "options": {"horizon": 2, "quantiles": [0.5]}}
    answer = (await client.post("/v1/timeseries/forecast", json=body)).json()
    assert (answer["status"], answer["model"], len(answer["outputs"])) == ("completed", "toy-forecast", 2)
    [content] = answer["outputs"][0]["content"]
    [expected] = await predicted(client, "toy-forecast", [{"history": HISTORY}], horizon=2, quantiles=[0.5])
    assert content["mean_forecast"] == expected["forecast"]
    assert content["quantiles"] == expected["quantiles"]
    assert (content["name"], content["start_timestamp"]) == ("load", "2024-01-01T05:00:00")
    models = (await client.get("/v1/timeseries/models")).json()["data"]
    assert [model["id"] for model in models] == ["toy-forecast"]


async def test_the_flat_series_of_nixtla_are_forecast(client: httpx.AsyncClient) -> None:
    body = {
        "series": {"y": [*HISTORY, *OTHER], "sizes": [5, 3], "X": None, "X_future": None},
        "model": "timegpt-1",
        "h": 2,
        "freq": "h",
        "level": [80],
        "finetune_steps": 0,
        "feature_contributions": False,
        "multivariate": False,
    }
    answer = (await client.post("/v2/forecast", json=body)).json()
    expected = await predicted(
        client, "toy-forecast", [{"history": HISTORY}, {"history": OTHER}], horizon=2, quantiles=[0.1, 0.9]
    )
    assert answer["mean"] == pytest.approx([value for row in expected for value in row["forecast"]], rel=1e-6)
    low = [value for row in expected for value in row["quantiles"]["0.1"]]
    assert answer["intervals"]["lo-80"] == pytest.approx(low, rel=1e-6)
    assert set(answer["intervals"]) == {"lo-80", "hi-80"}
    about = (await client.get("/model_params", params={"model": "timegpt-1", "freq": "h"})).json()
    assert about == {"detail": {"input_size": 24, "horizon": 4}}
    assert (await client.get("/validate_api_key")).status_code == 200


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def streaming(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """A server of one model that can stream."""
    folder = tmp_path_factory.mktemp("models")
    write_forecast_stream(folder, cells("lstm"))
    async with client_of(folder, vertex_predict_route="/v1/endpoints/7:predict") as client:
        yield client


OF_ROWS = {
    "/v1/models/toy-sensor:predict": "parameters",
    "/invocations": "params",
    "/v1/endpoints/7:predict": "parameters",
}
"""Where a format that takes rows as they are has its parameters."""


@pytest.mark.parametrize("path", OF_ROWS)
async def test_formats_of_rows_carry_states_and_name_sequences(streaming: httpx.AsyncClient, path: str) -> None:
    async def send(instance: Any, **parameters: Any) -> Any:
        answer = await streaming.post(path, json={"instances": [instance], OF_ROWS[path]: parameters})
        assert answer.status_code == 200, answer.text
        return answer.json()["predictions"][0]

    whole = await send({"history": HISTORY, "state": None})
    first = await send({"history": HISTORY[:2], "state": None})
    assert await send({"history": HISTORY[2:], "state": first["state"]}) == whole
    await send({"history": HISTORY[:2]}, sequence_id=path, sequence_start=True)
    last = await send({"history": HISTORY[2:]}, sequence_id=path, sequence_end=True)
    assert last == {name: value for name, value in whole.items() if name != "state"}
    ended = await streaming.post(path, json={"instances": [{"history": [1.0]}], OF_ROWS[path]: {"sequence_id": path}})
    assert ended.status_code == 404
    assert "was not started, or has ended" in message_of(path, ended.json())


@pytest.mark.parametrize("field", ["sequence_id", "sequence_start", "sequence_end", "state"])
@pytest.mark.parametrize(
    ("path", "places"),
    [
        ("/v2/forecast", [[], ["series"]]),
        ("/v1/timeseries/forecast", [[], ["options"], ["inputs", 0]]),
    ],
)
async def test_formats_that_have_no_place_for_sequences_say_so(
    streaming: httpx.AsyncClient, path: str, places: list[list[Any]], field: str
) -> None:
    for place in places:
        body: Any = {"series": dict(FLAT)} if path == "/v2/forecast" else {"inputs": [dict(SERIES)], "options": {}}
        at = body
        for key in place:
            at = at[key]
        at[field] = None if field == "state" else 1
        answer = await streaming.post(path, json=body)
        assert answer.status_code == 400
        assert f'"{field}": this format has no place for sequences' in message_of(path, answer.json())


SERIES = {"type": "univariate_time_series", "name": "a", "series": HISTORY}
FLAT = {"y": HISTORY, "sizes": [5]}
BAD: dict[str, tuple[str, Any, int, str]] = {
    "v1: no instances": ("/v1/models/toy-forecast:predict", {}, 400, '"instances" is missing'),
    "v1: the column form": ("/v1/models/toy-forecast:predict", {"inputs": {}}, 400, "the column form"),
    "v1: none at all": ("/v1/models/toy-forecast:predict", {"instances": []}, 400, "holds no instances"),
    "v1: too many": ("/v1/models/toy-forecast:predict", {"instances": [{}] * 6}, 413, "SLUICE_MAX_INSTANCES"),
    "v1: an unknown model": ("/v1/models/none:predict", {"instances": [1]}, 404, 'no model "none"'),
    "v1: an unknown version": ("/v1/models/toy-forecast/versions/9:predict", {"instances": [1]}, 404, "no version 9"),
    "v1: what no model can be called": ("/v1/models/a%20b:predict", {"instances": [1]}, 404, "no model at"),
    "invocations: two forms": ("/invocations", {"inputs": [1], "instances": [1]}, 400, "expected one of"),
    "invocations: no form": ("/invocations", {"data": [1]}, 400, "got none"),
    "invocations: rows of another width": (
        "/invocations",
        {"dataframe_split": {"columns": ["a"], "data": [[1, 2]]}},
        400,
        "rows of 1 values",
    ),
    "invocations: columns of other lengths": ("/invocations", {"inputs": {"a": [1], "b": [1, 2]}}, 400, "different lengths"),
    "invocations: records that are none": ("/invocations", {"dataframe_records": [1]}, 400, "a list of objects"),
    "time series: no inputs": ("/v1/timeseries/forecast", {"model": "toy-forecast"}, 400, '"inputs" is missing'),
    "time series: another type": ("/v1/timeseries/forecast", {"inputs": [{**SERIES, "type": "x"}]}, 400, '"type": expected'),
    "time series: no series": ("/v1/timeseries/forecast", {"inputs": [{"name": "a"}]}, 400, '"series" is missing'),
    "time series: a model for texts": (
        "/v1/timeseries/forecast",
        {"model": "toy-sentiment", "inputs": [SERIES]},
        400,
        "is a classify model",
    ),
    "nixtla: sizes that do not add up": ("/v2/forecast", {"series": {"y": HISTORY, "sizes": [4]}}, 400, "add up to 5"),
    "nixtla: a size below zero": ("/v2/forecast", {"series": {"y": HISTORY, "sizes": [-1, 6]}}, 400, "add up to 5"),
    "nixtla: columns of the past alone": (
        "/v2/forecast",
        {"series": {**FLAT, "X": [HISTORY]}, "h": 2},
        400,
        '"X_future" is missing',
    ),
    "nixtla: more columns of the past": (
        "/v2/forecast",
        {"series": {**FLAT, "X": [HISTORY] * 2, "X_future": [[1, 2]]}, "h": 2},
        400,
        "known of the history alone are not offered",
    ),
    "nixtla: a column that is too short": (
        "/v2/forecast",
        {"series": {**FLAT, "X": [[1]], "X_future": [[1, 2]]}, "h": 2},
        400,
        '"series.X": expected columns of 5 values each',
    ),
    "nixtla: a column of the future that is too long": (
        "/v2/forecast",
        {"series": {**FLAT, "X": [HISTORY], "X_future": [[1, 2, 3]]}, "h": 2},
        400,
        '"series.X_future": expected columns of 2 values each',
    ),
    "nixtla: a column that is none": (
        "/v2/forecast",
        {"series": {**FLAT, "X": ["1,2,3"], "X_future": [[1, 2]]}, "h": 2},
        400,
        '"series.X": expected columns of 5 values each',
    ),
    "nixtla: columns without a horizon": (
        "/v2/forecast",
        {"series": {**FLAT, "X": [HISTORY], "X_future": [[1]]}},
        400,
        '"h": expected a whole number above 0',
    ),
    "nixtla: columns for a model without covariates": (
        "/v2/forecast",
        {"series": {**FLAT, "X": [HISTORY], "X_future": [[1, 2]]}, "h": 2},
        400,
        "has the covariates [], in this order; found 1 columns",
    ),
    "nixtla: categories": ("/v2/forecast", {"series": {**FLAT, "categorical_exog": {}}}, 400, "categorical_exog"),
    "nixtla: fine-tuning": ("/v2/forecast", {"series": FLAT, "finetune_steps": 3}, 400, "finetune_steps"),
    "nixtla: a level of a hundred": ("/v2/forecast", {"series": FLAT, "level": [100]}, 400, "up to 100"),
    "nixtla: a thousand levels": ("/v2/forecast", {"series": FLAT, "level": [80] * 1000}, 400, "at most 49"),
    "vertex: instances that are none": ("/v1/endpoints/7:predict", {"instances": 3}, 400, '"instances" is missing'),
    "no JSON": ("/invocations", b"{", 400, "not JSON"),
    "nothing": ("/invocations", b"", 400, "body is empty"),
    "a list": ("/v1/timeseries/forecast", [], 400, "no JSON object"),
}


def message_of(path: str, content: Any) -> str:
    """The message of an error, where the format has it; fails where the shape is another."""
    match content:
        case {"error": str() as message} if path.startswith("/v1/models"):
            return message
        case {"error": {"code": str(), "message": str() as message, "param": None, "type": str()}} if "timeseries" in path:
            return message
        case {"error": {"code": int(), "message": str() as message}} if "endpoints" in path:
            return message
        case {"error_code": str(), "message": str() as message} if path == "/invocations":
            return message
        case {"detail": str() as message} if path == "/v2/forecast":
            return message
    raise AssertionError(f"{path}: {content}")


@pytest.mark.parametrize("name", BAD)
async def test_what_is_wrong_is_said_in_the_shape_of_the_format(client: httpx.AsyncClient, name: str) -> None:
    path, body, status, message = BAD[name]
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    answer = await client.post(path, **content)
    assert message in message_of(path, answer.json())
    assert answer.status_code == status


async def test_another_method_is_refused_in_the_shape_of_the_format(client: httpx.AsyncClient) -> None:
    for path in ("/v1/models/toy-forecast:predict", "/invocations", "/v1/timeseries/forecast", "/v2/forecast"):
        answer = await client.put(path)
        assert answer.status_code == 405
        assert message_of(path, answer.json())


async def test_every_format_is_a_label_of_the_metrics(client: httpx.AsyncClient) -> None:
    await client.post("/v1/models/toy-forecast:predict", json={"instances": [{"history": HISTORY}]})
    metrics = (await client.get("/metrics")).text
    assert 'api="kserve_v1",model="toy-forecast",outcome="ok",version="1"}' in metrics


async def test_a_name_that_the_answer_repeats_is_a_string(client: httpx.AsyncClient) -> None:
    deep = "[" * 500 + "]" * 500
    body = '{"options": {"horizon": 2}, "inputs": [{"series": [1, 2, 3], "name": DEEP}]}'.replace("DEEP", deep)
    answer = await client.post("/v1/timeseries/forecast", content=body)
    assert answer.status_code == 400
    assert '"name": expected a string' in answer.json()["error"]["message"]


async def test_a_body_has_no_more_parts_of_columns_than_values() -> None:
    """A thousand columns of one value each would else be cut once for each of a thousand series."""
    series = {"y": [1.0] * 1000, "sizes": [1] * 1000, "X": [[1.0]] * 1000, "X_future": [[1.0]] * 1000}
    with pytest.raises(MalformedRequest, match="expected columns of 1000 values each"):
        Nixtla().read({"series": series, "h": 1}, "/v2/forecast", 1000)


NUM_ROWS = 100_000


@pytest.mark.parametrize(
    ("adapter", "content"),
    [
        (Nixtla(), {"series": {"y": [1.0] * NUM_ROWS, "sizes": [1] * NUM_ROWS}}),
        (Nixtla(), {"series": {"y": [1.0] * NUM_ROWS, "sizes": [1] * NUM_ROWS, "X": [[1.0] * NUM_ROWS]}}),
        (Invocations(), {"inputs": {"history": [1.0] * NUM_ROWS}}),
        (Invocations(), {"dataframe_split": {"columns": ["history"], "data": [[1.0]] * NUM_ROWS}}),
        (Invocations(), {"dataframe_records": [{"history": 1.0}] * NUM_ROWS}),
        (TimeSeries(), {"inputs": [{"series": [1.0]}] * NUM_ROWS}),
    ],
    ids=["nixtla", "nixtla with columns", "columns", "split", "records", "time series"],
)
async def test_more_rows_than_a_request_may_have_are_refused_before_they_become_instances(
    adapter: Adapter, content: dict[str, Any]
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge, match="SLUICE_MAX_INSTANCES is 10"):
            adapter.read(content, adapter.paths[0], 10)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < NUM_ROWS, "bytes: less than one for each row"
