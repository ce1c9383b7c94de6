"""From the values of the settings to what decides over access: the hooks, the app for preflights, the files to watch."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import NamedTuple, TypeVar

from starlette.types import ASGIApp

from service.api.access.addresses import ClientAddresses, parse_networks
from service.api.access.control import AccessControl, AccessObserver, describe_refusals
from service.api.access.cors import Cors, allows_origin, parse_origins
from service.api.access.keys import KeyRing, read_keys
from service.api.access.rates import RateTable, parse_rate
from service.api.request import Headers, Hook, HttpRequest
from service.errors import StartError
from service.files import FileWatch

log = logging.getLogger(__name__)

# Clients whose requests are counted at one time, 16 bytes for each: more keys than a file may hold, and as many addresses.
NUM_KEY_RATES = 4096
NUM_ADDRESS_RATES = 65_536


class RateTables(NamedTuple):
    """Where the requests of each key and of each address are counted."""

    keys: RateTable
    addresses: RateTable


class AccessOptions(NamedTuple):
    """The settings of access, as the operator wrote them."""

    keys_file: Path | None = None
    protect_operations: bool = False
    rate_limit: str | None = None
    trusted_proxies: str | None = None
    cors_origins: str | None = None
    probes: Sequence[str] = ()
    """Routes of this server that a platform's probes call, besides those that every server has."""


class Access(NamedTuple):
    """What decides over access."""

    hooks: Sequence[Hook]
    cors: Cors | None
    watches: Sequence[FileWatch]
    """Of files that are read again when they change."""
    addresses: ClientAddresses
    """Where requests come from."""
    refusals: Callable[[str], Mapping[int, str]]
    """Route template → the statuses with which requests to it are refused, and when."""
    control: AccessControl | None = None
    """None where nothing is limited, and no key needed."""

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """The app, with answers to the preflights of other origins where there are any."""
        return app if self.cors is None else self.cors.wrap(app)

    def check_again(self, request: HttpRequest, route: str) -> None:
        """Raise Unauthorized or Forbidden where a request that lasts would no longer be let in with its key."""
        if self.control is not None:
            self.control.check_again(request, route)

    def allows_origin(self, headers: Headers) -> bool:
        """Whether what opens a WebSocket, with these headers, is no page, or one that may read the answers."""
        return allows_origin(self.cors, headers)


def make_rate_tables(options: AccessOptions, context: BaseContext | None = None) -> RateTables | None:
    """The tables that the processes of `context` share, or that one process has; None where nothing can be limited."""
    if options.rate_limit is None and options.keys_file is None:
        return None
    return RateTables(RateTable(NUM_KEY_RATES, context), RateTable(NUM_ADDRESS_RATES, context))


def open_access(options: AccessOptions, observer: AccessObserver, tables: RateTables | None = None) -> Access:
    """Read what the options name. Raises StartError that names the setting, or says what is wrong with the keys file."""
    rate = _parse("SLUICE_RATE_LIMIT", options.rate_limit, parse_rate)
    trusted = _parse("SLUICE_TRUSTED_PROXIES", options.trusted_proxies, lambda text: parse_networks(text.split(",")))
    origins = _parse("SLUICE_CORS_ORIGINS", options.cors_origins, lambda text: parse_origins(text.split(",")))
    if options.protect_operations and options.keys_file is None:
        raise StartError("SLUICE_PROTECT_OPERATIONS needs keys: SLUICE_API_KEYS_FILE names their file")
    keys = None
    watches = []
    if options.keys_file is not None:
        keys = KeyRing(read_keys(options.keys_file))
        watches.append(FileWatch([options.keys_file], functools.partial(_reload_keys, options.keys_file, keys)))
    cors = None if origins is None else Cors(origins)
    hooks: list[Hook] = [] if cors is None else [cors]
    addresses = ClientAddresses(trusted or ())
    tables = tables or make_rate_tables(options)
    control = None
    if tables is not None:
        control = AccessControl(
            observer,
            keys=keys,
            rate=rate,
            key_rates=tables.keys,
            address_rates=tables.addresses,
            addresses=addresses,
            protects_operations=options.protect_operations,
            probes=options.probes,
        )
        hooks.append(control)
    refusals = functools.partial(
        describe_refusals,
        has_keys=keys is not None,
        protects_operations=options.protect_operations,
        has_rates=tables is not None,
    )
    return Access(hooks, cors, watches, addresses, refusals, control)


def _reload_keys(file: Path, keys: KeyRing) -> None:
    if keys.replace(read_keys(file)):
        log.info("API keys have changed", extra={"keys": len(keys)})


_Value = TypeVar("_Value")


def _parse(setting: str, text: str | None, parse: Callable[[str], _Value]) -> _Value | None:
    try:
        return None if text is None else parse(text)
    except ValueError as exc:
        raise StartError(f"{setting}={text}: {exc}", name=setting) from exc
