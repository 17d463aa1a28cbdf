"""Whose address a request has that came through proxies."""

from __future__ import annotations

from ipaddress import ip_network
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from fettle.server import http
from fettle.server.access import Access
from fettle.server.proxies import HEADER
from fettle.server.settings import ServerSettings

TRUSTED = ("10.0.0.0/8", "fd00::/16")


def address(told: str, *headers: str, trusted: tuple[str, ...] = TRUSTED) -> str:
    settings = ServerSettings(trusted_proxies=tuple(map(ip_network, trusted)))
    return Access(settings).client(None, told, lambda: headers)


@pytest.mark.parametrize(
    ("sentence", "told", "headers", "expected"),
    [
        ("a client of its own", "192.0.2.7:5000", [], "192.0.2.7"),
        ("one that poses as another", "192.0.2.7:5000", ["198.51.100.1"], "192.0.2.7"),
        ("a proxy that tells nothing", "10.0.0.1:5000", [], "10.0.0.1"),
        ("a client behind a proxy", "10.0.0.1:5000", ["192.0.2.7"], "192.0.2.7"),
        ("behind two", "10.0.0.1:5000", ["192.0.2.7, 10.0.0.2"], "192.0.2.7"),
        ("in a header of its own", "10.0.0.1:5000", ["198.51.100.1", "192.0.2.7"], "192.0.2.7"),
        ("one that poses as another behind a proxy", "10.0.0.1:5000", ["198.51.100.1,192.0.2.7"], "192.0.2.7"),
        ("one that poses as a proxy", "10.0.0.1:5000", ["198.51.100.1, 10.0.0.9, 192.0.2.7"], "192.0.2.7"),
        ("a client in the cluster", "10.0.0.1:5000", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("with its port", "10.0.0.1:5000", ["192.0.2.7:4711"], "192.0.2.7"),
        ("IPv6", "[fd00::1]:5000", ["2001:db8::7"], "2001:db8::/64"),
        ("IPv6 with its port", "[fd00::1]:5000", ["[2001:db8::7]:4711"], "2001:db8::/64"),
        ("IPv4 on a port of IPv6", "[::ffff:10.0.0.1]:5000", ["::ffff:192.0.2.7"], "192.0.2.7"),
        ("one that nobody knows", "10.0.0.1:5000", ["192.0.2.7, unknown"], "10.0.0.1"),
        ("nonsense", "10.0.0.1:5000", ["\x00" * 1000, ",,,"], "10.0.0.1"),
        ("more hops than are read", "10.0.0.1:5000", [", ".join(["192.0.2.7", *["10.0.0.2"] * 999])], "10.0.0.2"),
    ],
)
def test_the_address_is_the_last_one_that_no_trusted_proxy_has(
    sentence: str, told: str, headers: list[str], expected: str
) -> None:
    assert address(told, *headers) == expected, sentence


def test_without_trusted_proxies_nobody_is_believed() -> None:
    assert address("10.0.0.1:5000", "192.0.2.7", trusted=()) == "10.0.0.1"
    assert address("[fd00::1]:5000", "192.0.2.7", trusted=()) == "fd00::/64"


def test_the_setting_is_a_list_of_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FETTLE_SERVER_TRUSTED_PROXIES", '["10.0.0.0/8", "fd00::1"]')
    assert ServerSettings().trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("fd00::1/128"))
    monkeypatch.setenv("FETTLE_SERVER_TRUSTED_PROXIES", '["gateway"]')
    with pytest.raises(ValidationError, match="trusted_proxies"):
        ServerSettings()


@pytest.mark.parametrize("told", ["[2001:db8::7]:1", "[2001:db8::ffff:8]:2"])
def test_all_addresses_of_a_network_of_ipv6_are_one_client(told: str) -> None:
    assert address(told) == "2001:db8::/64"


def test_one_host_is_one_client_by_whichever_protocol_it_comes() -> None:
    assert address("[::ffff:192.0.2.7]:1") == address("192.0.2.7:1") == "192.0.2.7"


@pytest.mark.parametrize(("readable", "believed"), [(["192.0.2.7", "198.51.100.1"], True), (["192.0.2.7"], False)])
def test_nobody_is_believed_where_one_of_several_headers_cannot_be_read(readable: list[str], believed: bool) -> None:
    """granian leaves a value with bytes beyond ASCII out, but not its name."""
    headers = SimpleNamespace(get_all=lambda name: readable, keys=lambda: ["host", HEADER, HEADER])
    assert http._forwarded(headers) == (readable if believed else [])
