"""The address of a client behind proxies, as they tell it in X-Forwarded-For. Only trusted ones are believed: anyone can send that header."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

HEADER = "x-forwarded-for"
MOST_HOPS = 16  # of a header, from its end
Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


def host(told: str) -> str:
    """The address of a connection's other end, which is told as address:port."""
    return told.rpartition(":")[0]


def client(told: str, headers: Sequence[str], trusted: Sequence[Network]) -> str:
    """The address of a client whose connection is `told`.

    `headers`: the values of X-Forwarded-For, of which each proxy appends the address that it was asked from. The client's is the last
    that no trusted proxy has, and whatever stands before it was written by the client.
    """
    address = host(told)
    hops = ",".join(headers).rsplit(",", MOST_HOPS)[-MOST_HOPS:]
    while hops and _is_trusted(address, trusted):
        following = parsed(hops.pop())
        if following is None:
            break
        address = str(following)
    return address


@lru_cache(4096)
def identity(address: str) -> str:
    """What is one client by its address. Whoever has one address of IPv6 has all that begin with the same 64 bits."""
    known = parsed(address)
    if isinstance(known, IPv6Address):
        return str(IPv6Network((known, 64), strict=False))
    return address if known is None else str(known)


def _is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    known = parsed(address)
    return known is not None and any(known in network for network in trusted)


def parsed(text: str) -> Address | None:
    """An address, which some proxies write with its port, and ports of IPv6 as one of IPv6; None for anything else, such as `unknown`."""
    text = text.strip()
    for form in (text, host(text)):
        try:
            address = ipaddress.ip_address(form.removeprefix("[").removesuffix("]"))
        except ValueError:
            continue
        mapped: Address | None = getattr(address, "ipv4_mapped", None)
        return mapped or address
    return None
