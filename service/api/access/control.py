"""The hook that every request passes first: who sends it, whether it is within their rate, whether their key opens the route.

Finds out nothing itself: keys, rates and addresses are in the files beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, Self, TypeVar

from service.api.access.addresses import ClientAddresses
from service.api.access.keys import ApiKey, KeyRing, Scope
from service.api.access.rates import Rate, RateTable
from service.api.errors import Forbidden, RateLimited, Unauthorized
from service.api.page import ROUTES as PAGES
from service.api.request import Headers, HttpRequest
from service.errors import RateScope

CALLER = "caller"
"""In a request's state: the name of its API key. Absent without one."""
VISIBLE_MODELS = "visible_models"
"""In a request's state: the models that it may use and see. Absent where that is all of them."""
OPERATIONS = frozenset(("/metrics", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/ping"))
"""What probes and scrapers ask for: open unless protected, and never limited."""
_V2_MODELS = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
V2_METADATA = (
    "/v2",
    "/v2/",
    "/v2/models",
    "/v2/models/stats",
    "/v2/repository/index",
    *(f"{model}{what}" for model in _V2_MODELS for what in ("", "/ready", "/config", "/stats")),
)
"""Routes of the Open Inference Protocol that say what is there."""
ADAPTER_METADATA = (
    "/v1/models",
    "/v1/models/{name}",
    "/v1/models/{name}/versions/{version}",
    "/v1/timeseries/models",
    "/model_params",
    "/validate_api_key",
)
"""The same of the other wire formats."""
CONTROL = (
    "/models/{name}/load",
    "/models/{name}/unload",
    "/v2/repository/models/{name}/load",
    "/v2/repository/models/{name}/unload",
)
"""Routes that change what is served."""
_NONE: frozenset[Scope] = frozenset()
_ANY: frozenset[Scope] = frozenset(("predict", "admin"))
# A route that is not listed below needs this: who adds one need not think of it.
_PREDICT: frozenset[Scope] = frozenset(("predict",))
_ADMIN: frozenset[Scope] = frozenset(("admin",))
_NO_MODELS: frozenset[str] = frozenset()
_CREDENTIALS = frozenset((b"authorization", b"x-api-key"))


class AccessObserver(Protocol):
    """Counts requests that were refused."""

    def rate_limited(self, scope: RateScope, key: str) -> None:
        """A request was beyond the rate of a key, by its name, or of an address (`key` is then empty)."""
        ...


class AccessControl:
    """Refuses requests with Unauthorized, Forbidden and RateLimited; says in the state of others who sends them.

    A request counts for its key, or without one for its address; so do those that are refused for their key.
    """

    def __init__(
        self,
        observer: AccessObserver,
        *,
        keys: KeyRing | None = None,
        rate: Rate | None = None,
        key_rates: RateTable | None = None,
        address_rates: RateTable | None = None,
        addresses: ClientAddresses | None = None,
        protects_operations: bool = False,
        probes: Iterable[str] = (),
        now: Callable[[], float] = time.monotonic,
        wall_time: Callable[[], float] = time.time,
    ) -> None:
        """Without `keys` every route is open. `rate` is for every client; without a table nothing of its kind is limited.

        `probes` are routes that this server has besides OPERATIONS, for the same senders.
        """
        self._observer = observer
        self._keys = keys
        self._rate = rate
        self._key_rates = key_rates
        self._address_rates = address_rates
        self._addresses = addresses or ClientAddresses()
        self._operations = OPERATIONS.union(probes)
        self._scopes = route_scopes(protects_operations, probes)
        self._now = now
        self._wall_time = wall_time

    def before(self, request: HttpRequest) -> None:
        """Let the request pass, or raise."""
        keys = self._keys
        presented = key = None
        if keys is not None:
            presented = find_presented(request.headers)
            if presented is not None:
                key = keys.find(presented)
        if key is None:
            self._check_without_key(request, presented)
            return
        rate = key.rate
        if rate is None and not key.is_unlimited:
            rate = self._rate
        if rate is not None:
            self._count(request, rate, key)
        if self._has_expired(key):
            self._let_in_where_open(request, "the API key has expired", has_credentials=True)
            return
        self._expect_scope(request.route, key)
        request.state[CALLER] = key.name
        if key.models is not None:
            request.state[VISIBLE_MODELS] = key.models

    def after(self, request: HttpRequest, headers: Headers) -> None:
        """Nothing."""

    def finished(self, request: HttpRequest) -> None:
        """Nothing."""

    def check_again(self, request: HttpRequest, route: str) -> None:
        """Raise Unauthorized or Forbidden where the key of a request that lasts was removed, has expired or opens less since.

        What it may see is in the request's state anew. It counts for no rate.
        """
        if self._keys is None or not self._scopes.get(route, _PREDICT):
            return
        presented = find_presented(request.headers)
        key = None if presented is None else self._keys.find(presented)
        if key is None or self._has_expired(key):
            raise Unauthorized("the API key is no longer valid", has_credentials=True)
        self._expect_scope(route, key)
        if key.models is not None:
            request.state[VISIBLE_MODELS] = key.models
        else:
            request.state.pop(VISIBLE_MODELS, None)

    def _has_expired(self, key: ApiKey) -> bool:
        return key.expires_at is not None and key.expires_at <= self._wall_time()

    def _expect_scope(self, route: str, key: ApiKey) -> None:
        scopes = self._scopes.get(route, _PREDICT)
        if scopes and scopes.isdisjoint(key.scopes):
            raise Forbidden(f'the key "{key.name}" has not the scope {" or ".join(sorted(scopes))}', expected=sorted(scopes))

    def _check_without_key(self, request: HttpRequest, presented: bytes | None) -> None:
        if request.method == "OPTIONS":
            return  # a preflight, which browsers send without a key; no endpoint has this method
        if self._rate is not None:
            self._count(request, self._rate, None)
        if self._keys is not None:
            needed = 'an API key is needed, as "Authorization: Bearer KEY" or as "X-API-Key: KEY"'
            message = needed if presented is None else "the API key is not valid"
            self._let_in_where_open(request, message, has_credentials=presented is not None)

    def _let_in_where_open(self, request: HttpRequest, message: str, *, has_credentials: bool) -> None:
        if self._scopes.get(request.route, _PREDICT):
            raise Unauthorized(message, has_credentials=has_credentials)
        request.state[VISIBLE_MODELS] = _NO_MODELS

    def _count(self, request: HttpRequest, rate: Rate, key: ApiKey | None) -> None:
        """Count the request of a key, or of an address; raises RateLimited."""
        table = self._address_rates if key is None else self._key_rates
        if table is None or request.route in self._operations:
            return
        client = self._addresses.find(request) if key is None else key.name
        wait_s = table.take(client, rate, self._now())
        if wait_s > 0:
            if key is None:
                self._observer.rate_limited("address", "")
            else:
                self._observer.rate_limited("key", key.name)
            whose = "from this address" if key is None else f'with the key "{key.name}"'
            raise RateLimited(f"more requests than {rate.text} {whose}", retry_after_s=wait_s, limit=rate.text)


def route_scopes(protects_operations: bool, probes: Iterable[str] = ()) -> Mapping[str, frozenset[Scope]]:
    """Route template → the scopes of which a key needs one; none for an open route. All others need `predict`.

    `probes` are as of AccessControl.
    """
    scopes = dict.fromkeys(("/models", "/models/{name}", *V2_METADATA, *ADAPTER_METADATA), _ANY)
    scopes |= dict.fromkeys(CONTROL, _ADMIN)
    scopes |= dict.fromkeys(OPERATIONS.union(probes), _ADMIN if protects_operations else _NONE)
    return scopes | dict.fromkeys(("/", *PAGES), _ANY if protects_operations else _NONE)


def describe_refusals(route: str, *, has_keys: bool, protects_operations: bool, has_rates: bool) -> dict[int, str]:
    """Status → when a request to this route is refused with it; what is switched off refuses nothing."""
    scopes = route_scopes(protects_operations).get(route, _PREDICT) if has_keys else _NONE
    refusals = {401: "No API key, or one that is not valid"} if scopes else {}
    if scopes and scopes != _ANY:
        refusals[403] = f"The API key has not the scope {' or '.join(sorted(scopes))}"
    if has_rates and route not in OPERATIONS:
        refusals[429] = "More requests than the rate of the key or address; Retry-After says when to try again"
    return refusals


def find_presented(headers: Headers) -> bytes | None:
    """What the request presents as its key; None for nothing, empty where that is no single key."""
    presented = None
    for name, value in headers:
        if name in _CREDENTIALS:
            if presented is not None:
                return b""  # two of them: neither this server nor a proxy in front shall have to choose
            presented = value.strip() if name == b"x-api-key" else _bearer_token(value)
    return presented


def _bearer_token(value: bytes) -> bytes:
    if value.startswith(b"Bearer "):
        return value[7:].strip()
    scheme, _, token = value.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


class Models(Protocol):
    """Models by their names."""

    def restricted_to(self, names: frozenset[str]) -> Self:
        """Those of these names."""
        ...


_Models = TypeVar("_Models", bound=Models)


def caller_of(state: Mapping[str, Any]) -> str:
    """The name of the API key that sends a request, by its state; empty without one."""
    name: str = state.get(CALLER, "")
    return name


def visible_models(models: _Models, state: Mapping[str, Any]) -> _Models:
    """The models that a request may use and see, by its state. Every endpoint that reads models does so through it."""
    names: frozenset[str] | None = state.get(VISIBLE_MODELS)
    return models if names is None else models.restricted_to(names)
