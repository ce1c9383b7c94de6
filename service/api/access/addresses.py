"""The address that a request comes from, also behind proxies that the operator trusts."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable

from service.api.request import HttpRequest

UNKNOWN = "unknown"
"""Of a connection that has no address, such as one over a Unix socket."""
MAX_FORWARDED_BYTES = 512
REMEMBERED_ADDRESSES = 4096
# One site is given a /64 at least; its addresses are nothing to count by.
IPV6_PREFIX = 64

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Networks such as `10.0.0.0/8` and single addresses. Raises ValueError."""
    return tuple(ipaddress.ip_network(text) for text in texts)


class ClientAddresses:
    """Whom a rate limit by address counts: the peer of the connection, or behind a trusted proxy the client it names.

    `X-Forwarded-For` is read from its end, where each proxy appends whom it saw: past every trusted proxy, to the first
    address that is none of them. What stands before that is the client's own word. Where an entry is no address, the last
    one that was read counts.
    """

    def __init__(self, trusted: Iterable[Network] = ()) -> None:
        self._trusted = tuple(trusted)
        # Proxies are few and clients come again; reading addresses takes 5 µs and more.
        self._find = functools.lru_cache(REMEMBERED_ADDRESSES)(self._find)  # type: ignore[method-assign]

    def find(self, request: HttpRequest) -> str:
        """An IPv4 address, or the /64 network of an IPv6 address."""
        return self._read(request)[0]

    def locate(self, request: HttpRequest) -> str:
        """The address itself."""
        return self._read(request)[1]

    def _read(self, request: HttpRequest) -> tuple[str, str]:
        forwarded = b""
        if self._trusted:
            forwarded = b",".join(value for name, value in request.headers if name == b"x-forwarded-for")
            forwarded = forwarded[-MAX_FORWARDED_BYTES:]
        return self._find(UNKNOWN if request.client is None else request.client[0], forwarded)

    def _find(self, peer: str, forwarded: bytes) -> tuple[str, str]:
        address = _parse(peer)
        if address is None:
            return UNKNOWN, UNKNOWN
        for entry in reversed(forwarded.decode("latin-1").split(",")) if forwarded else ():
            if not any(address in network for network in self._trusted):
                break
            found = _parse(entry.strip(" \t"))
            if found is None:
                break
            address = found
        if isinstance(address, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False)), str(address)
        return str(address), str(address)


def _parse(text: str) -> _Address | None:
    """The address, as IPv4 where it is one that IPv6 carries; None for anything else, one with a port too."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address
