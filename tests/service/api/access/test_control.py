"""Which requests pass: the key they present, the route they go to, and how many came before them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import pytest

from service.api.access.control import CALLER, VISIBLE_MODELS, AccessControl, find_presented, route_scopes, visible_models
from service.api.access.keys import ApiKey, KeyRing
from service.api.access.rates import WAYS, RateTable, parse_rate
from service.api.errors import Forbidden, RateLimited, Unauthorized, problem
from service.api.request import HttpRequest
from tests.heads import RecordingObserver, request

NOW = 1_000_000.0
OPEN = ("/", "/docs", "/docs/errors", "/openapi.json", "/static/{file}")
OPERATIONS = ("/health/live", "/health/ready", "/metrics")
MODELS = ("/models", "/models/{name}")
PREDICT = ("/predict", "/predict/forecast", "/predict/sentiment", "_unknown", "/added/later")


def key(name: str, **options: Any) -> ApiKey:
    """A key that is presented as `sluice_NAME`."""
    options.setdefault("scopes", frozenset({"predict"}))
    return ApiKey(name, hashlib.sha256(f"sluice_{name}".encode()).digest(), **options)


KEYS = (
    key("predict"),
    key("admin", scopes=frozenset({"admin"})),
    key("both", scopes=frozenset({"predict", "admin"})),
    key("narrow", models=frozenset({"a"})),
    key("expired", expires_at=NOW),
    key("expiring", expires_at=NOW + 1),
)


def control(**options: Any) -> AccessControl:
    options.setdefault("keys", KeyRing(KEYS))
    options.setdefault("observer", RecordingObserver())
    return AccessControl(now=lambda: NOW, wall_time=lambda: NOW, **options)


def presented(name: str | None, route: str = "/predict", **options: Any) -> HttpRequest:
    headers = [] if name is None else [(b"authorization", b"Bearer sluice_" + name.encode())]
    return request(route, *headers, **options)


def outcome(access: AccessControl, sent: HttpRequest) -> str:
    try:
        access.before(sent)
    except (Unauthorized, Forbidden, RateLimited) as exc:
        return exc.code
    return "ok"


@pytest.mark.parametrize(
    ("routes", "name", "expected"),
    [
        (OPEN + OPERATIONS, None, "ok"),
        (OPEN + OPERATIONS, "wrong", "ok"),
        (OPEN + OPERATIONS, "expired", "ok"),
        (MODELS + PREDICT, None, "unauthorized"),
        (MODELS + PREDICT, "wrong", "unauthorized"),
        (MODELS + PREDICT, "expired", "unauthorized"),
        (OPEN + OPERATIONS + MODELS + PREDICT, "predict", "ok"),
        (MODELS + PREDICT, "expiring", "ok"),
        (OPEN + OPERATIONS + MODELS, "admin", "ok"),
        (PREDICT, "admin", "forbidden"),
        (OPEN + OPERATIONS + MODELS + PREDICT, "both", "ok"),
    ],
)
def test_with_keys_predictions_and_models_need_one_and_a_new_route_does_too(
    routes: tuple[str, ...], name: str | None, expected: str
) -> None:
    access = control()
    assert {route: outcome(access, presented(name, route)) for route in routes} == dict.fromkeys(routes, expected)


@pytest.mark.parametrize(
    ("routes", "name", "expected"),
    [
        (OPEN + OPERATIONS, None, "unauthorized"),
        (OPERATIONS, "predict", "forbidden"),
        (OPEN, "predict", "ok"),
        (OPEN + OPERATIONS, "admin", "ok"),
    ],
)
def test_protected_operations_need_the_scope_admin_and_the_pages_any_key(
    routes: tuple[str, ...], name: str | None, expected: str
) -> None:
    access = control(protects_operations=True)
    assert {route: outcome(access, presented(name, route)) for route in routes} == dict.fromkeys(routes, expected)


def test_a_platforms_probe_is_open_never_limited_and_protected_like_the_operations() -> None:
    options: dict[str, Any] = {"probes": ["/alive"], "rate": parse_rate("1/h"), "address_rates": RateTable(8)}
    access = control(**options)
    assert [outcome(access, presented(None, "/alive")) for _ in range(9)] == ["ok"] * 9
    assert outcome(access, presented(None, "/alive/below")) == "unauthorized"
    protected = control(protects_operations=True, **options)
    names = (None, "predict", "admin")
    assert [outcome(protected, presented(name, "/alive")) for name in names] == ["unauthorized", "forbidden", "ok"]


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        (key("a"), "ok"),
        (key("a", models=frozenset({"m"})), "ok"),
        (key("a", scopes=frozenset({"admin"})), "forbidden"),
        (key("a", expires_at=NOW), "unauthorized"),
        (key("b"), "unauthorized"),
    ],
)
def test_what_lasts_is_let_in_no_longer_than_its_key(later: ApiKey, expected: str) -> None:
    ring = KeyRing([key("a", models=frozenset({"m", "n"}))])
    access = control(keys=ring, rate=parse_rate("1/h"), key_rates=RateTable(8))
    sent = presented("a")
    assert outcome(access, sent) == "ok"
    access.check_again(sent, sent.route)  # which counts for no rate
    ring.replace([later])
    found = "ok"
    try:
        access.check_again(sent, sent.route)
    except (Unauthorized, Forbidden) as exc:
        found = exc.code
    assert found == expected
    if expected == "ok":
        assert sent.state.get(VISIBLE_MODELS) == later.models


def test_without_keys_what_lasts_may_last() -> None:
    access, sent = control(keys=None), presented(None)
    access.before(sent)
    access.check_again(sent, sent.route)
    assert sent.state == {}


def test_without_keys_every_route_is_open_and_nobody_has_a_name() -> None:
    access = control(keys=None)
    for route in OPEN + OPERATIONS + MODELS + PREDICT:
        sent = presented("wrong", route)
        assert outcome(access, sent) == "ok"
        assert sent.state == {}


def test_every_route_of_the_operations_and_pages_is_named_as_the_server_has_it() -> None:
    from service.app import create_app
    from service.settings import Settings

    gateway = create_app(Settings())
    assert set(route_scopes(False)) <= {*gateway._exact, *(route.template for _, route in gateway._patterns)}


def test_a_preflight_needs_no_key() -> None:
    assert outcome(control(), presented(None, method="OPTIONS")) == "ok"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], None),
        ([(b"authorization", b"Bearer k")], b"k"),
        ([(b"authorization", b"bearer k")], b"k"),
        ([(b"authorization", b"BEARER   k ")], b"k"),
        ([(b"x-api-key", b"k")], b"k"),
        ([(b"x-api-key", b" k ")], b"k"),
        ([(b"authorization", b"Basic k")], b""),
        ([(b"authorization", b"k")], b""),
        ([(b"authorization", b"Bearer")], b""),
        ([(b"authorization", b"Bearerk")], b""),
        ([(b"authorization", b"Bearer k"), (b"x-api-key", b"k")], b""),
        ([(b"x-api-key", b"k"), (b"x-api-key", b"k")], b""),
        ([(b"cookie", b"x-api-key=k"), (b"proxy-authorization", b"Bearer k")], None),
    ],
)
def test_a_key_is_presented_in_one_of_two_headers_and_only_once(
    headers: list[tuple[bytes, bytes]], expected: bytes | None
) -> None:
    assert find_presented(headers) == expected


def test_the_endpoint_learns_whose_key_it_is_and_which_models_it_may_use() -> None:
    access = control()
    for name, state in (
        ("predict", {CALLER: "predict"}),
        ("narrow", {CALLER: "narrow", VISIBLE_MODELS: frozenset({"a"})}),
    ):
        sent = presented(name)
        access.before(sent)
        assert sent.state == state


def test_without_a_key_an_open_route_shows_no_models() -> None:
    for name in (None, "wrong", "expired"):
        sent = presented(name, "/health/ready")
        control().before(sent)
        assert sent.state == {VISIBLE_MODELS: frozenset()}


def test_only_a_request_that_may_not_see_all_models_gets_a_restricted_view() -> None:
    @dataclass
    class Names:
        names: frozenset[str] | None = None

        def restricted_to(self, names: frozenset[str]) -> Names:
            return Names(names)

    models = Names()
    assert visible_models(models, {}) is models
    assert visible_models(models, {VISIBLE_MODELS: frozenset({"a"})}) == Names(frozenset({"a"}))


def test_a_refusal_says_how_to_mend_it_and_repeats_no_key() -> None:
    access = control()
    for name, challenge in (
        (None, b"Bearer"),
        ("wrong", b'Bearer error="invalid_token"'),
        ("expired", b'Bearer error="invalid_token"'),
    ):
        with pytest.raises(Unauthorized) as caught:
            access.before(presented(name))
        answer = problem(caught.value)
        assert (answer.status, dict(answer.headers)[b"www-authenticate"]) == (401, challenge)
        assert b"sluice_" not in answer.body
    with pytest.raises(Forbidden) as refused:
        access.before(presented("admin"))
    assert problem(refused.value).status == 403
    assert refused.value.facts == {"expected": ["predict"]}


# ------------------------------------------------------------------------------------------------------------- rates


def limited(**options: Any) -> tuple[AccessControl, RecordingObserver]:
    observer = RecordingObserver()
    options.setdefault("rate", parse_rate("2/min"))
    tables = {"key_rates": RateTable(WAYS), "address_rates": RateTable(WAYS)}
    return control(observer=observer, **tables, **options), observer


def test_without_keys_each_address_has_the_rate() -> None:
    access, observer = limited(keys=None)
    for client in ("198.51.100.1", "198.51.100.2"):
        sent = [request("/predict", client=(client, port)) for port in range(4)]
        assert [outcome(access, each) for each in sent] == ["ok", "ok", "rate_limited", "rate_limited"]
    assert observer.limited == [("address", "")] * 4


def test_with_keys_each_name_has_the_rate_wherever_it_comes_from() -> None:
    access, observer = limited()
    for name in ("predict", "both"):
        sent = [presented(name, client=(f"198.51.100.{number}", 1)) for number in range(3)]
        assert [outcome(access, each) for each in sent] == ["ok", "ok", "rate_limited"]
    assert observer.limited == [("key", "predict"), ("key", "both")]


def test_two_keys_of_one_holder_are_counted_together() -> None:
    old, new = key("a"), ApiKey("a", hashlib.sha256(b"sluice_new").digest(), frozenset({"predict"}))
    access, _ = limited(keys=KeyRing([old, new]))
    assert [outcome(access, presented(name)) for name in ("a", "new", "a")] == ["ok", "ok", "rate_limited"]


def test_a_key_may_have_a_rate_of_its_own_or_none() -> None:
    access, _ = limited(keys=KeyRing([key("slow", rate=parse_rate("1/min")), key("free", is_unlimited=True)]))
    assert [outcome(access, presented("slow")) for _ in range(2)] == ["ok", "rate_limited"]
    assert [outcome(access, presented("free")) for _ in range(9)] == ["ok"] * 9


def test_a_key_may_have_a_rate_where_the_server_has_none() -> None:
    access, _ = limited(rate=None, keys=KeyRing([key("slow", rate=parse_rate("1/min"))]))
    assert [outcome(access, presented("slow")) for _ in range(2)] == ["ok", "rate_limited"]
    assert [outcome(access, presented(None)) for _ in range(4)] == ["unauthorized"] * 4


def test_whoever_tries_keys_is_limited_by_address() -> None:
    access, observer = limited()
    sent = [presented(f"guess {number}") for number in range(4)]
    assert [outcome(access, each) for each in sent] == ["unauthorized", "unauthorized", "rate_limited", "rate_limited"]
    assert observer.limited == [("address", "")] * 2


def test_probes_and_scrapers_are_never_limited() -> None:
    access, _ = limited(keys=None)
    assert {outcome(access, request(route)) for route in OPERATIONS for _ in range(9)} == {"ok"}


def test_a_refusal_says_the_rate_and_when_to_come_back() -> None:
    access, _ = limited(keys=None)
    for _ in range(2):
        access.before(request())
    with pytest.raises(RateLimited) as caught:
        access.before(request())
    answer = problem(caught.value)
    assert (answer.status, dict(answer.headers)[b"retry-after"]) == (429, b"30")
    assert caught.value.facts == {"limit": "2/min"}
