"""Which address a request comes from, whatever it claims."""

from __future__ import annotations

import pytest

from service.api.access.addresses import ClientAddresses, parse_networks
from tests.heads import request

PROXIES = ("10.0.0.0/8", "fd00::/8", "192.0.2.1")


def found(peer: str | None, *forwarded: bytes, trusted: tuple[str, ...] = PROXIES) -> str:
    addresses = ClientAddresses(parse_networks(trusted))
    headers = [(b"x-forwarded-for", value) for value in forwarded]
    return addresses.find(request("/", *headers, client=None if peer is None else (peer, 1)))


def test_without_trusted_proxies_the_peer_counts_whatever_it_claims() -> None:
    assert found("198.51.100.7", b"1.2.3.4", trusted=()) == "198.51.100.7"


def test_a_peer_that_is_no_trusted_proxy_cannot_name_another_address() -> None:
    assert found("198.51.100.7", b"1.2.3.4") == "198.51.100.7"


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ((b"1.2.3.4",), "1.2.3.4"),
        ((b" 1.2.3.4\t",), "1.2.3.4"),
        ((b"6.6.6.6, 1.2.3.4",), "1.2.3.4"),
        ((b"6.6.6.6, 1.2.3.4, 10.9.9.9, 192.0.2.1",), "1.2.3.4"),
        ((b"6.6.6.6", b"1.2.3.4", b"10.9.9.9"), "1.2.3.4"),
        ((b"10.1.1.1, 10.2.2.2",), "10.1.1.1"),
        ((b"::ffff:1.2.3.4",), "1.2.3.4"),
        ((b"2001:db8:1:2:3:4:5:6",), "2001:db8:1:2::/64"),
        ((b"6.6.6.6, fd00::1",), "6.6.6.6"),
    ],
)
def test_behind_trusted_proxies_the_last_that_is_none_of_them_counts(forwarded: tuple[bytes, ...], client: str) -> None:
    assert found("10.0.0.1", *forwarded) == client


@pytest.mark.parametrize(
    "entry",
    [b"", b"nonsense", b"1.2.3.4:80", b"[::1]", b"1.2.3", b"01.2.3.4", b"\xff", b"unknown", b'for="1.2.3.4"', b"1.2.3.4/8"],
)
def test_an_entry_that_is_no_address_ends_the_way_back(entry: bytes) -> None:
    assert found("10.0.0.1", b"1.1.1.1, " + entry) == "10.0.0.1"
    assert found("10.0.0.1", b"1.1.1.1, " + entry + b", 10.0.0.7") == "10.0.0.7"


def test_a_header_without_end_is_read_from_its_end_and_no_further_than_its_bound() -> None:
    assert found("10.0.0.1", b"1.1.1.1, " * 10_000 + b"2.2.2.2") == "2.2.2.2"
    assert found("10.0.0.1", b"1.1.1.1, " + b"10.0.0.1," * 10_000) == "10.0.0.1"


def test_addresses_of_one_ipv6_network_count_as_one() -> None:
    assert found("2001:db8::1") == found("2001:db8::ffff:1") == "2001:db8::/64"
    assert found("fe80::1%eth0") == "fe80::/64"


def test_an_ipv4_address_counts_the_same_however_it_is_written() -> None:
    assert found("::ffff:198.51.100.7") == found("198.51.100.7") == "198.51.100.7"


def test_a_connection_without_an_address_has_one_name() -> None:
    assert found(None) == found("") == "unknown"


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "host", "", "10.0.0.0/8 "])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_networks([text])
