"""The OpenAPI document, held against the service: what its schemas accept is accepted, what they refuse is refused."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from openapi_spec_validator import OpenAPIV31SpecValidator

from service.api.errors import TABLE
from service.api.openapi import BEYOND_SCHEMA, describe_errors, list_endpoints
from service.app import create_app
from service.settings import Settings
from service.tasks.classify_schema import MAX_CHARACTERS
from service.tasks.history import FLOAT32_MAX
from tests.folders import write_forecast_folder, write_tensor_folder, write_text_folder
from tests.json_schemas import damaged, validator, values
from tests.serving import client_of, server_process
from tests.streams import cells, write_forecast_stream

ROOT = Path(__file__).parent.parent.parent.parent
NUM_BODIES = 100
"""Generated bodies per operation and direction."""


async def read_document() -> dict[str, Any]:
    app = create_app(Settings(models=ROOT / "models"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://sluice") as client:
        document: dict[str, Any] = (await client.get("/openapi.json")).json()
        return document


DOCUMENT = asyncio.run(read_document())
COMPONENTS = DOCUMENT["components"]
SCHEMAS = COMPONENTS["schemas"]
OPERATIONS = [(path, method, about) for path, methods in DOCUMENT["paths"].items() for method, about in methods.items()]
POSTS = [path for path, method, about in OPERATIONS if "predict" in about["tags"]]
OF_SEQUENCES = {"state", "sequence_id", "sequence_start", "sequence_end"}
OTHERS = ("open inference protocol", "other formats")
"""Tags of the routes whose errors are not problems."""


def body_schema(path: str) -> dict[str, Any]:
    schema: dict[str, Any] = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return schema


def resolve(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return SCHEMAS[schema["$ref"].split("/")[-1]] if "$ref" in schema else schema


# ------------------------------------------------------------------------------------------------------- the document


def test_the_document_is_valid_openapi() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_operation_ids_are_names_of_functions() -> None:
    found = [about["operationId"] for _, _, about in OPERATIONS]
    assert {"predict", "predict_forecast", "list_models", "describe_model", "check_ready", "get_metrics", "index"} <= set(found)
    assert [name for name in found if not re.fullmatch(r"[a-z]+(_[a-z]+)*", name)] == []
    assert len(set(found)) == len(found)


def test_every_operation_has_a_tag_a_summary_and_a_description() -> None:
    tags = {tag["name"] for tag in DOCUMENT["tags"] if tag["description"]}
    assert all(about["summary"] and about["description"] and set(about["tags"]) <= tags for _, _, about in OPERATIONS)
    assert {tag for _, _, about in OPERATIONS for tag in about["tags"]} == tags


def test_the_schemas_have_the_names_that_a_client_should_have() -> None:
    assert [name for name in SCHEMAS if not re.fullmatch(r"([A-Z][a-z]+)+", name)] == []
    assert not {"HTTPValidationError", "ValidationError"} & SCHEMAS.keys()


def fields() -> list[tuple[str, str, dict[str, Any]]]:
    return [(name, field, about) for name, schema in SCHEMAS.items() for field, about in schema.get("properties", {}).items()]


def test_every_field_has_a_description_and_every_plain_one_an_example() -> None:
    assert len(fields()) > 60
    assert [(name, field) for name, field, about in fields() if not about.get("description")] == []
    assert [(name, field) for name, field, about in fields() if "examples" not in about and "$ref" not in str(about)] == []


def test_every_schema_accepts_its_own_examples() -> None:
    nodes = [(name, schema) for name, schema in SCHEMAS.items()] + [(f"{name}.{field}", about) for name, field, about in fields()]
    checked = [(name, schema, example) for name, schema in nodes for example in schema.get("examples", ())]
    assert len(checked) > 60
    for name, schema, example in checked:
        assert [error.message for error in validator(schema, COMPONENTS).iter_errors(example)] == [], name


def test_a_point_forecast_is_called_so_and_may_be_a_median() -> None:
    forecast = SCHEMAS["Forecast"]["properties"]
    assert "forecast" in forecast
    assert "mean" not in forecast
    assert "GET /models/{name}" in forecast["forecast"]["description"]
    assert SCHEMAS["ForecastDescription"]["properties"]["point"]["enum"] == ["mean", "median"]


def test_the_index_is_documented_in_both_its_forms() -> None:
    assert DOCUMENT["paths"]["/"]["get"]["responses"]["200"]["content"].keys() == {"application/json", "text/html"}


def test_the_description_explains_every_error_and_every_rule_that_no_schema_can_say() -> None:
    assert [error["code"] for error in DOCUMENT["x-errors"]] == [entry.error.code for entry in TABLE]
    assert DOCUMENT["x-errors"] == describe_errors()
    text = DOCUMENT["info"]["description"]
    for error in describe_errors():
        assert f"| {error['status']} | [`{error['code']}`](/docs/errors#{error['code']}) |" in text
    for field, rule in BEYOND_SCHEMA.items():
        assert f"| `{field}` | {rule} |" in text
    known = {field for _, field, _ in fields()}
    assert BEYOND_SCHEMA.keys() <= known


def test_every_error_response_is_a_problem_with_an_example_of_its_status() -> None:
    check = validator({"$ref": "#/components/schemas/Problem"}, COMPONENTS)
    seen = 0
    for path, _, about in OPERATIONS:
        for status, response in about["responses"].items():
            if int(status) < 400 or path == "/health/ready" or set(OTHERS) & set(about["tags"]):
                continue
            (content,) = response["content"].items()
            assert content[0] == "application/problem+json"
            assert content[1]["schema"] == {"$ref": "#/components/schemas/Problem"}
            check.validate(content[1]["example"])
            assert content[1]["example"]["status"] == int(status)
            seen += 1
    assert seen > 20


def test_the_endpoints_of_the_index_are_those_of_the_document() -> None:
    endpoints = list_endpoints(DOCUMENT)
    assert endpoints.keys() == DOCUMENT["paths"].keys()
    assert endpoints["/models"] == "GET: List the models"


# -------------------------------------------------------------------------------------- the document and what is served


async def test_every_read_endpoint_returns_what_its_schema_says(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    write_text_folder(tmp_path)
    write_tensor_folder(tmp_path)
    (write_text_folder(tmp_path, "broken") / "model.onnx").write_bytes(b"no graph")
    (tmp_path / "empty").mkdir()
    names = ["toy-forecast", "toy-sentiment", "toy-tensor", "broken", "empty"]
    async with client_of(tmp_path) as client:
        for path, method, about in OPERATIONS:
            if method != "get":
                continue
            for url in [path.format(name=name, version="1") for name in names] if "{name}" in path else [path]:
                answer = await client.get(url, headers={"accept": "application/json"})
                media_type = answer.headers["content-type"].split(";")[0]
                schema = about["responses"][str(answer.status_code)]["content"][media_type]["schema"]
                content = answer.json() if media_type.endswith("json") else answer.text
                validator(schema, COMPONENTS).validate(content)
                # What is answered is documented too, except for what the manifests add.
                if isinstance(content, dict) and "{name}" not in path and answer.is_success:
                    assert content.keys() <= resolve(schema)["properties"].keys(), url


OF_OTHERS = [(path, method) for path, method, about in OPERATIONS if set(OTHERS) & set(about["tags"])]


def test_the_routes_of_other_protocols_are_all_there() -> None:
    paths = {path for path, _ in OF_OTHERS}
    assert {"/v2", "/v2/models/{name}/infer", "/v2/repository/index", "/invocations", "/v1/models/{name}:predict"} <= paths
    assert {"/v1/timeseries/forecast", "/v2/forecast", "/v2/models/{name}/versions/{version}/infer"} <= paths


@pytest.mark.parametrize(("path", "method"), OF_OTHERS)
def test_an_example_of_another_protocol_is_answered_as_documented(server: httpx.Client, path: str, method: str) -> None:
    about = DOCUMENT["paths"][path][method]
    for name in ("forecast-hourly", "sentiment-en"):
        url = path.format(name=name, version="1")
        schema = about.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        for body in resolve(schema).get("examples", [None]):
            answer = server.request(method.upper(), url, json=body)
            documented = about["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
            validator(documented, COMPONENTS).validate(answer.json() if answer.content else None)
            is_its_own = name == "forecast-hourly" or "{name}" not in path
            if body is not None and is_its_own and "KserveRequest" not in str(schema):  # whose example is of texts
                assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("path", "method"), [(path, method) for path, method in OF_OTHERS if method == "post"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b'{"a": 1}'])
def test_what_is_no_request_of_another_protocol_is_refused_as_documented(
    server: httpx.Client, path: str, method: str, body: bytes
) -> None:
    about = DOCUMENT["paths"][path][method]
    answer = server.post(path.format(name="forecast-hourly", version="1"), content=body)
    if answer.status_code == 200:
        assert path == "/v2/repository/index"
        assert body in (b"", b'{"a": 1}')
        return
    documented = about["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
    validator(documented, COMPONENTS).validate(answer.json())
    assert answer.status_code == 400


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    # One model for each task: which of several a request means is not the document's.
    models = os.pathsep.join(str(ROOT / "models" / name) for name in ("forecast-hourly", "sentiment-en"))
    with server_process(Path(models)) as process, httpx.Client(base_url=process.url, timeout=30, trust_env=False) as client:
        yield client


def post(server: httpx.Client, path: str, body: Any) -> httpx.Response:
    """The answer, whose status the document lists for the operation, and whose problem is one of its."""
    content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    answer = server.post(path, content=content, headers={"content-type": "application/json"})
    documented = DOCUMENT["paths"][path]["post"]["responses"]
    assert str(answer.status_code) in documented, answer.text
    if answer.status_code != 200:
        schema = documented[str(answer.status_code)]["content"][answer.headers["content-type"]]["schema"]
        validator(schema, COMPONENTS).validate(answer.json())
    return answer


def bodies_with_examples(schema: Mapping[str, Any]) -> Iterator[Any]:
    """The examples of a schema, and its first one with each field's own examples in its place."""
    schema = resolve(schema)
    yield from schema.get("examples", ())
    for name, field in schema.get("properties", {}).items():
        first = copy.deepcopy(schema["examples"][0])
        if name == "version":
            first["model"] = SCHEMAS[schema["title"]]["properties"]["model"]["examples"][0]
        for example in field.get("examples", ()):
            yield {**first, name: example}
        for inner in [field, *field.get("anyOf", ())]:
            kind = resolve(inner)
            if kind.get("type") == "array":
                yield from ({**first, name: [part]} for part in parts_with_examples(kind["items"], first[name][-1]))
            elif "properties" in kind and "$ref" in inner:
                yield from ({**first, name: part} for part in parts_with_examples(inner, {}))


def parts_with_examples(schema: Mapping[str, Any], first: Any) -> Iterator[Any]:
    for choice in [schema, *schema.get("anyOf", ())]:
        for name, field in resolve(choice).get("properties", {}).items():
            # These need a model that can stream or has covariates, and those of the examples do neither.
            for example in field.get("examples", ()) if name not in {*OF_SEQUENCES, "past", "future"} else ():
                yield {**first, name: example}


@pytest.mark.parametrize("path", POSTS)
def test_every_documented_example_is_accepted_by_the_bundled_models(server: httpx.Client, path: str) -> None:
    bodies = list(bodies_with_examples(body_schema(path)))
    assert len(bodies) >= 5
    for body in bodies:
        validator(body_schema(path), COMPONENTS).validate(body)
        if path == "/predict" and body["model"] == "sentiment-en" and "parameters" in body:
            continue  # the examples of two models, mixed
        answer = post(server, path, body)
        assert answer.status_code == 200, (body, answer.text)


@pytest.mark.parametrize("path", POSTS)
def test_the_answers_to_the_examples_are_what_the_document_says(server: httpx.Client, path: str) -> None:
    schema = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    prediction = resolve(resolve(schema)["properties"]["predictions"]["items"])
    for body in resolve(body_schema(path))["examples"]:
        answer = post(server, path, body).json()
        validator(schema, COMPONENTS).validate(answer)
        for found in answer["predictions"] if "properties" in prediction else ():
            assert found.keys() <= prediction["properties"].keys()


def refused_field(problem: Mapping[str, Any]) -> str | None:
    """The field that a problem is about, by the names of BEYOND_SCHEMA."""
    by_code = {"model_not_found": "model", "ambiguous_model": "model", "payload_too_large": "instances"}
    where = problem.get("where")
    if where is None:
        # A text that is given without the object around it has no field.
        return by_code.get(problem["code"], "text" if "text" in problem["detail"] else None)
    return re.split(r"[.\[]", where)[0] or None


def with_served_model(path: str, models: tuple[str, ...]) -> dict[str, Any]:
    """The body's schema, with the models that are served in place of any name."""
    schema = copy.deepcopy(dict(resolve(body_schema(path))))
    schema["properties"]["model"] = {"enum": [*models, *([] if path == "/predict" else [None])]}
    schema["properties"]["version"] = {"enum": ["1", "2", None]}
    return schema


quick = settings(
    max_examples=NUM_BODIES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.mark.parametrize("path", POSTS)
def test_a_body_that_the_schema_accepts_is_refused_only_for_a_documented_reason(server: httpx.Client, path: str) -> None:
    for schema in (body_schema(path), with_served_model(path, ("forecast-hourly", "sentiment-en"))):

        @quick
        @given(values(schema, COMPONENTS))
        def check(body: Any) -> None:
            answer = post(server, path, body)
            if answer.status_code == 504:
                assert body["timeout_ms"] < 10_000
                return
            # The instances of /predict are of any model, so any place in them may be refused.
            if answer.status_code != 200 and path != "/predict":
                assert refused_field(answer.json()) in BEYOND_SCHEMA, (body, answer.text)

        check()


def narrowed(path: str, server: httpx.Client) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schemas with what `GET /models/{name}` says of the bundled models put in: all that BEYOND_SCHEMA names."""
    components = copy.deepcopy(COMPONENTS)
    model = server.get("/models/forecast-hourly").json()["forecast"]
    series: dict[str, Any] = components["schemas"]["ForecastInstance"]["properties"]
    values = series["history"]["anyOf"][0] | {"minItems": model["min_length"], "maxItems": model["min_length"]}
    # The network reads all of these steps, and one of them is a number.
    values["items"] = {"type": "number", "minimum": -1e6, "maximum": 1e6}
    series["history"] = values
    horizon = {"type": "integer", "minimum": 1, "maximum": model["max_horizon"]}
    level = {"type": "number", "minimum": model["quantiles"][0], "maximum": model["quantiles"][-1]}
    choices = {
        "horizon": {"anyOf": [horizon, {"type": "null"}]},
        "quantiles": {"anyOf": [{"type": "array", "items": level, "maxItems": 99}, {"type": "null"}]},
        "frequency": {"enum": [*model["frequencies"], "hourly", None]},
        "point": {"enum": [*model["points"], None]},
    }
    series |= choices | {"start": {"enum": ["2026-01-05T00:00:00", "2026-01-05", "20260105T00Z", None]}}
    components["schemas"]["ForecastParameters"]["properties"] |= choices
    series |= {name: {"enum": [None]} for name in ("past", "future")}
    methods = server.get("/models/sentiment-en").json()["classify"]["explain"]
    components["schemas"]["ClassifyParameters"]["properties"]["explain"] = {"enum": [*methods, None]}
    for part in ("ForecastInstance", "ForecastParameters", "ClassifyInstance", "ClassifyParameters"):
        fields = components["schemas"][part]["properties"]
        for field in OF_SEQUENCES & fields.keys():
            del fields[field]
    name = "forecast-hourly" if "forecast" in path else "sentiment-en"
    schema = with_served_model(path, (name,))
    schema["properties"]["version"] = {"enum": [None]}
    if path == "/predict":
        schema["properties"]["instances"]["items"] = {"anyOf": [{"$ref": "#/components/schemas/ClassifyInstance"}]}
        schema["properties"]["parameters"] = {"type": "null"}
    return schema, components


@pytest.mark.parametrize("path", POSTS)
def test_a_body_that_also_obeys_the_documented_rules_is_accepted(server: httpx.Client, path: str) -> None:
    schema, components = narrowed(path, server)

    @quick
    @given(values(schema, components).filter(lambda body: validator(body_schema(path), COMPONENTS).is_valid(body)))
    def check(body: Any) -> None:
        answer = post(server, path, body)
        if answer.status_code == 504:  # the body itself asked for an answer within a millisecond or so
            assert body["timeout_ms"] < 10_000
            return
        if answer.status_code == 422 and "to explain" in answer.json()["detail"]:  # so many words are rarely made
            assert body["parameters"]["explain"]
            return
        assert answer.status_code == 200, (body, answer.text)

    check()


@pytest.mark.parametrize("path", POSTS)
def test_a_body_that_the_schema_refuses_is_refused(server: httpx.Client, path: str) -> None:
    schema, components = narrowed(path, server)
    is_valid = validator(body_schema(path), COMPONENTS).is_valid
    codes: Counter[str] = Counter()

    @quick
    @given(damaged(values(schema, components)))
    def check(body: Any) -> None:
        assume(not is_valid(body))
        answer = post(server, path, body)
        assert answer.status_code in (400, 404, 422), (body, answer.text)
        codes[answer.json()["code"]] += 1

    check()
    assert codes.keys() >= {"malformed_request", "invalid_input"}


LONG = 168
LIMITS = [
    ("/predict/sentiment", {"instances": ["a" * MAX_CHARACTERS]}, True),
    ("/predict/sentiment", {"instances": ["a" * (MAX_CHARACTERS + 1)]}, False),
    ("/predict/sentiment", {"instances": [{"text": "a" * (MAX_CHARACTERS + 1)}]}, False),
    ("/predict/sentiment", {"instances": [""]}, False),
    ("/predict/sentiment", {"instances": [" \n\t"]}, False),
    ("/predict/sentiment", {"instances": ["a"], "parameters": {}}, True),
    ("/predict/sentiment", {"instances": ["a"], "parameters": {"top": 1}}, False),
    ("/predict/forecast", {"instances": [{"history": [FLOAT32_MAX] * LONG, "horizon": 1}]}, None),
    ("/predict/forecast", {"instances": [{"history": [2 * FLOAT32_MAX] + [1] * LONG}]}, False),
    ("/predict/forecast", {"instances": [{"history": [1.0] * LONG, "quantiles": [0.5] * 99}]}, True),
    ("/predict/forecast", {"instances": [{"history": [1.0] * LONG, "quantiles": [0.5] * 100}]}, False),
    ("/predict/forecast", {"instances": [{"history": [1.0] * LONG, "quantiles": [1]}]}, False),
    ("/predict/forecast", {"instances": [{"history": [1.0] * LONG, "quantiles": [0]}]}, False),
    ("/predict/forecast", {"instances": [{"history": [[1.0]] * LONG, "quantiles": []}]}, True),
    ("/predict/forecast", {"instances": [{"history": [[]] * LONG}]}, False),
    ("/predict/forecast", {"instances": [{"history": [True] * LONG}]}, False),
    ("/predict/forecast", {"instances": [{"history": [1.0] * LONG, "horizon": 0}]}, False),
    ("/predict/forecast", {"instances": [{"history": [1.0] * LONG, "frequency": "H" * 21}]}, False),
    ("/predict/forecast", {"instances": [{"history": [1.0] * LONG}], "model": "forecast-hourly", "version": "01"}, False),
    ("/predict/forecast", {"instances": [{"history": [1.0] * LONG}], "model": None, "version": None, "parameters": None}, True),
]


@pytest.mark.parametrize(("path", "body", "is_accepted"), LIMITS)
def test_the_limits_of_the_schemas_are_those_of_the_service(
    server: httpx.Client, path: str, body: Any, is_accepted: bool | None
) -> None:
    """`None`: the schema accepts it, and the model may overflow."""
    assert validator(body_schema(path), COMPONENTS).is_valid(body) == (is_accepted is not False)
    status = post(server, path, body).status_code
    assert status in ((200,) if is_accepted else (400, 404, 422) if is_accepted is False else (200, 422))


IDS = [1, 2**64 - 1, "a", "a" * 128, "\u00e9 /"]
# Not 2^64, one beyond the bound: the document writes it as a double, which is rounded.
NO_IDS = [0, -1, 2**65, 1.5, True, "", "a" * 129, "a\tb", [1], {}]


async def test_the_schema_of_a_sequence_id_is_that_of_the_service(tmp_path: Path) -> None:
    write_forecast_stream(tmp_path, cells("lstm"))
    async with client_of(tmp_path) as client:
        for identifier in [*IDS, *NO_IDS]:
            is_accepted = identifier in IDS and identifier is not True
            sequence = {"sequence_id": identifier, "sequence_start": True, "sequence_end": False}
            for body in (
                {"instances": [{"history": [1.0]}], "parameters": sequence},
                {"instances": [{"history": [1.0], **sequence}]},
            ):
                assert validator(body_schema("/predict/forecast"), COMPONENTS).is_valid(body) is is_accepted
                answer = await client.post("/predict/forecast", json=body)
                assert answer.status_code == (200 if is_accepted else 422), answer.text


def test_streams_are_documented_with_what_the_schemas_cannot_say() -> None:
    stream = DOCUMENT["paths"]["/predict/stream"]["post"]
    assert stream["requestBody"]["content"].keys() == {"application/x-ndjson"}
    assert stream["responses"]["200"]["content"].keys() == {"text/event-stream"}
    assert {"400", "404", "408", "413", "415", "422", "503"} <= stream["responses"].keys()
    websocket = DOCUMENT["paths"]["/predict/ws"]["get"]
    assert {"101", "403", "426", "503"} <= websocket["responses"].keys()
    assert "which OpenAPI cannot describe" in websocket["description"]
    for field in ("prediction", "error", "end"):
        assert f'"{field}"' in websocket["description"]
