"""A server of two workers with keys and rates, attacked from outside: by either HTTP path nobody gets further than their key."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from service.api.access.keys import describe_entry, new_key
from tests.folders import write_forecast_folder, write_text_folder
from tests.serving import ServerProcess, server_process, wait_until

ORIGIN = "https://app.example.com"
PREDICT = ("/predict", "/predict/forecast", "/predict/sentiment")
MODELS = ("/models", "/models/toy-forecast")
OPERATIONS = ("/health/live", "/health/ready", "/metrics")
PAGES = ("/", "/docs", "/docs/errors", "/openapi.json", "/static/sluice.css")
BODY = {"model": "toy-forecast", "instances": [{"history": [1, 2, 3]}]}
OPTIONS: dict[str, dict[str, Any]] = {
    "full": {"scopes": ["predict", "admin"], "rate_limit": "none"},
    "predict": {"scopes": ["predict"], "rate_limit": "none"},
    "admin": {"scopes": ["admin"], "rate_limit": "none"},
    "narrow": {"scopes": ["predict"], "models": ["toy-sentiment"], "rate_limit": "none"},
    "slow": {"scopes": ["predict"], "rate_limit": "20/h"},
}


class Attacked(NamedTuple):
    server: ServerProcess
    keys: dict[str, str]
    keys_file: Path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_forecast_folder(folder)
    write_text_folder(folder)
    return folder


@pytest.fixture(scope="module")
def attacked(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    keys = {name: new_key() for name in OPTIONS}
    keys_file = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys_file.write_text("".join(describe_entry(key, name, **OPTIONS[name]) for name, key in keys.items()))
    keys_file.chmod(0o644)
    with server_process(
        models,
        SLUICE_WORKERS="2",
        SLUICE_NUM_THREADS="1",
        SLUICE_API_KEYS_FILE=str(keys_file),
        SLUICE_CORS_ORIGINS=ORIGIN,
        SLUICE_RATE_LIMIT="1000000/min",
    ) as server:
        yield Attacked(server, keys, keys_file)
        for key in keys.values():
            assert key not in server.log + server.output


def credentials(key: str | None, header: str = "authorization") -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer {key}"} if header == "authorization" else {"x-api-key": key}


# A new connection for each request, so that each worker gets some.
CLIENT = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0), timeout=30)


def send(
    server: ServerProcess, path: str, headers: dict[str, str] | None = None, *, fast: bool = True, body: Any = BODY
) -> httpx.Response:
    """By the fast path or by the regular one, which takes what is sent in chunks."""
    if path not in PREDICT:
        return CLIENT.get(server.url + path, headers=headers)
    content = json.dumps(body).encode()
    headers = {"content-type": "application/json"} | (headers or {})
    return CLIENT.post(server.url + path, content=content if fast else iter([content]), headers=headers)


@pytest.mark.parametrize("fast", [True, False], ids=["fast path", "regular path"])
@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
def test_each_route_asks_for_its_key(attacked: Attacked, header: str, fast: bool) -> None:
    expected = {
        None: (401, 401, 200, 200),
        "sluice_" + "a" * 43: (401, 401, 200, 200),
        attacked.keys["full"]: (200, 200, 200, 200),
        attacked.keys["predict"]: (200, 200, 200, 200),
        attacked.keys["admin"]: (403, 200, 200, 200),
    }
    for key, statuses in expected.items():
        for paths, status in zip(((PREDICT[0],), MODELS, OPERATIONS, PAGES), statuses, strict=True):
            for path in paths:
                answer = send(attacked.server, path, credentials(key, header), fast=fast)
                assert answer.status_code == status, (key, path, answer.text)
                if status == 401:
                    assert answer.headers["www-authenticate"].startswith("Bearer")
                    assert answer.json()["code"] == "unauthorized"


@pytest.mark.parametrize("fast", [True, False], ids=["fast path", "regular path"])
def test_no_odd_way_of_writing_a_path_or_a_key_gets_around_it(attacked: Attacked, fast: bool) -> None:
    good = attacked.keys["full"]
    odd: list[tuple[str, list[tuple[str, str]]]] = [
        ("/predict", [("authorization", f"Bearer {good}x")]),
        ("/predict", [("authorization", f"Bearer {good[:-1]}")]),
        ("/predict", [("authorization", f"Basic {good}")]),
        ("/predict", [("authorization", good)]),
        ("/predict", [("authorization", f"Bearer {good}, Bearer {good}")]),
        ("/predict", [("authorization", f"Bearer {good}"), ("authorization", "Bearer x")]),
        ("/predict", [("authorization", f"Bearer {good}"), ("x-api-key", good)]),
        ("/predict", [("cookie", f"x-api-key={good}")]),
        (f"/predict?x-api-key={good}", []),
        ("/predict", [("x-api-key", "a" * 60_000)]),
        ("/predict", [("x-forwarded-for", "127.0.0.1"), ("x-real-ip", "127.0.0.1")]),
        ("//predict", []),
        ("/predict/", []),
        ("/./predict", []),
        ("/docs/../predict", []),
        ("/%70redict", []),
        ("/predict;/docs", []),
        ("/PREDICT", []),
        ("/health/live/../../models", []),
        ("/models/", []),
        ("/models/%2e%2e", []),
        ("/admin", []),
    ]
    for path, headers in odd:
        for method in ("POST", "GET", "HEAD"):
            content = json.dumps(BODY).encode() if method == "POST" else b""
            url = attacked.server.url + path
            answer = CLIENT.request(method, url, content=content if fast else iter([content]), headers=headers)
            assert answer.status_code in (401, 404, 405, 431), (method, path, headers, answer.text)
            assert "predictions" not in answer.text
            assert "toy-forecast" not in answer.text


WITHOUT_KEY = {"/", "/health/live", "/health/ready", "/metrics", "/ping", "/v2/health/live", "/v2/health/ready"}


def test_the_document_says_which_routes_need_a_key(attacked: Attacked) -> None:
    document = send(attacked.server, "/openapi.json").json()
    assert document["components"]["securitySchemes"].keys() == {"BearerKey", "HeaderKey"}
    needed = {path for path, operations in document["paths"].items() for each in operations.values() if "security" in each}
    assert document["paths"].keys() - needed == WITHOUT_KEY
    assert {path for path in document["paths"] if path.startswith(("/predict", "/models", "/sequences"))} <= needed
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            answer = CLIENT.request(method, attacked.server.url + path.replace("{name}", "toy-forecast"))
            assert (answer.status_code == 401) == ("401" in operation["responses"]) == ("security" in operation), path


@pytest.mark.parametrize("fast", [True, False], ids=["fast path", "regular path"])
def test_a_key_for_some_models_sees_no_others_anywhere(attacked: Attacked, fast: bool) -> None:
    narrow = credentials(attacked.keys["narrow"])
    text = {"instances": ["good"]}

    def ask(path: str, body: Any = BODY) -> httpx.Response:
        return send(attacked.server, path, narrow, fast=fast, body=body)

    assert ask("/predict/sentiment", text).status_code == 200
    assert ask("/predict", text | {"model": "toy-sentiment"}).status_code == 200
    assert [model["name"] for model in ask("/models").json()["models"]] == ["toy-sentiment"]
    assert [model["name"] for model in ask("/health/ready").json()["models"]] == ["toy-sentiment"]
    assert "toy-forecast" not in ask("/").text
    assert ask("/models/toy-sentiment").status_code == 200
    refused = [
        ask("/models/toy-forecast"),
        ask("/predict"),
        ask("/predict", BODY | {"version": "1"}),
        ask("/predict", BODY | {"version": "7"}),
        ask("/predict/forecast"),
        ask("/predict/forecast", {"instances": [{"history": [1, 2]}]}),
    ]
    for answer in refused:
        assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found"), answer.text
    # What is hidden is answered as what does not exist.
    for path, body in (("/models/NAME", None), ("/predict", BODY | {"model": "NAME"})):
        hidden, absent = (
            json.loads(
                ask(path.replace("NAME", name), json.loads(json.dumps(body).replace("NAME", name))).text.replace(name, "NAME")
            )
            for name in ("toy-forecast", "no-such-model")
        )
        assert hidden.pop("request_id") != absent.pop("request_id")
        assert hidden == absent
        assert "toy-sentiment" in hidden["detail"]


def test_without_a_key_health_and_the_index_name_no_models(attacked: Attacked) -> None:
    for path in ("/health/ready", "/health/live", "/"):
        answer = send(attacked.server, path)
        assert answer.status_code == 200
        assert "toy-" not in answer.text, path
    assert send(attacked.server, "/health/ready").json() == {"status": "ready", "models": []}


def test_workers_together_let_through_the_rate_of_a_key_and_not_one_more(attacked: Attacked) -> None:
    headers = credentials(attacked.keys["slow"]) | {"origin": ORIGIN}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: send(attacked.server, "/predict", headers, fast=number % 2 == 0), range(60)))
    assert Counter(answer.status_code for answer in answers) == {200: 20, 429: 40}
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["code"] == "rate_limited"
            assert 1 <= int(answer.headers["retry-after"]) <= 180
            assert "retry-after" in answer.headers["access-control-expose-headers"]
    wait_until(
        lambda: re.search(
            r'^sluice_ratelimit_rejections_total\{key="slow",scope="key"\} 40\.0$', metrics(attacked), re.MULTILINE
        ),
        "all workers have handed on their counts",
    )


def metrics(attacked: Attacked) -> str:
    return send(attacked.server, "/metrics").text


def test_a_keys_file_that_others_may_read_is_a_warning_in_one_line(attacked: Attacked) -> None:
    (line,) = [line for line in attacked.server.log.splitlines() if "can be read by others" in line]
    assert "SLUICE_API_KEYS_FILE" in line
    assert str(attacked.keys_file) in line


def test_keys_are_nowhere_in_the_metrics(attacked: Attacked) -> None:
    send(attacked.server, "/predict", credentials(attacked.keys["full"]))
    for key in attacked.keys.values():
        assert key not in metrics(attacked)


@pytest.mark.parametrize("fast", [True, False], ids=["fast path", "regular path"])
def test_only_pages_of_the_given_origin_may_read_answers_of_either_path_and_errors_too(attacked: Attacked, fast: bool) -> None:
    for key, status in ((attacked.keys["full"], 200), (None, 401)):
        for origin, allowed in ((ORIGIN, ORIGIN), ("https://evil.example", None)):
            answer = send(attacked.server, "/predict", credentials(key) | {"origin": origin}, fast=fast)
            assert answer.status_code == status
            assert answer.headers.get("access-control-allow-origin") == allowed
            assert answer.headers["vary"] == "origin"


def test_a_preflight_needs_no_key_and_names_what_may_be_sent(attacked: Attacked) -> None:
    headers = {"origin": ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    answer = httpx.options(f"{attacked.server.url}/predict", headers=headers)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (204, ORIGIN)
    assert "x-api-key" in answer.headers["access-control-allow-headers"]
    evil = httpx.options(f"{attacked.server.url}/predict", headers=headers | {"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in evil.headers


def test_a_key_is_replaced_without_a_restart_and_a_broken_file_changes_nothing(models: Path, tmp_path: Path) -> None:
    old, new = new_key(), new_key()
    file = tmp_path / "keys.toml"
    file.write_text(describe_entry(old, "a", scopes=["predict"]))

    def statuses(key: str) -> set[int]:
        """Of enough connections to meet every worker."""
        return {send(server, "/models", credentials(key)).status_code for _ in range(8)}

    def replace(text: str) -> None:
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").rename(file)

    with server_process(models, SLUICE_WORKERS="2", SLUICE_NUM_THREADS="1", SLUICE_API_KEYS_FILE=str(file)) as server:
        assert (statuses(old), statuses(new)) == ({200}, {401})
        replace(describe_entry(old, "a", scopes=["predict"]) + describe_entry(new, "a", scopes=["predict"]))
        wait_until(lambda: statuses(new) == {200}, "the new key is taken")
        assert statuses(old) == {200}
        replace("[[keys]")
        wait_until(lambda: server.log.count("a changed file is not used") == 2, "both workers have seen the broken file")
        assert (statuses(old), statuses(new)) == ({200}, {200})
        replace(describe_entry(new, "a", scopes=["predict"]))
        wait_until(lambda: statuses(old) == {401}, "the old key is refused")
        assert statuses(new) == {200}
        assert old not in server.log
        assert new not in server.log


def test_addresses_are_told_apart_only_where_a_trusted_proxy_names_them(models: Path) -> None:
    for trusted, expected in (("", Counter({200: 3, 429: 9})), ("127.0.0.1,::1", Counter({200: 12}))):
        with server_process(models, SLUICE_RATE_LIMIT="3/h", SLUICE_TRUSTED_PROXIES=trusted) as server:
            answers = [send(server, "/predict", {"x-forwarded-for": f"6.6.6.6, 198.51.100.{number % 4}"}) for number in range(12)]
            assert Counter(answer.status_code for answer in answers) == expected
            assert {send(server, path).status_code for path in OPERATIONS for _ in range(4)} == {200}


def test_a_setting_that_would_protect_nothing_ends_the_start(models: Path) -> None:
    with (
        pytest.raises(AssertionError, match="sluice: /dev/null is not a regular file"),
        server_process(models, SLUICE_API_KEYS_FILE="/dev/null"),
    ):
        pytest.fail("the server started")
