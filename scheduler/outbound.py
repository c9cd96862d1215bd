"""Connections to addresses that clients name: only to public ones, checked where the connection is made.

The name is resolved once and the checked address is the one that is connected to, so that no second answer of a name
server (DNS rebinding) counts. Redirects are not followed, proxies of the environment not used.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from httpcore2 import AnyIOBackend, AsyncNetworkBackend, AsyncNetworkStream

MAX_URL_CHARS = 2048


class ForbiddenAddress(Exception):
    """The URL names, or resolves to, what this server does not connect to."""


class PublicOnly(AsyncNetworkBackend):
    """Connects to global addresses, and to those `host:port` that the operator trusts whatever they are."""

    def __init__(self, trusted: frozenset[str]) -> None:
        self._trusted = trusted
        self._backend = AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> AsyncNetworkStream:
        """Resolve, check every address, connect to the first. Raises ForbiddenAddress, OSError."""
        async with asyncio.timeout(timeout):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        if f"{host}:{port}" not in self._trusted:
            for address in addresses:
                if not is_public(address):
                    raise ForbiddenAddress(f"{host} is {address}, which is no public address.")
        return await self._backend.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        """As httpcore asks."""
        await asyncio.sleep(seconds)


def is_public(address: str) -> bool:
    """Is this a global unicast address? Addresses that carry an IPv4 address in them are judged by that one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def check_url(url: str, trusted: frozenset[str]) -> None:
    """What can be said of a URL without asking a name server. Raises ForbiddenAddress."""
    scheme, host, port = _taken_apart(url)
    if f"{host}:{port}" in trusted:
        return
    if (scheme, port) != ("https", 443):
        raise ForbiddenAddress("Only https:// on port 443 (or a host that the operator trusts).")
    if _is_literal(host) and not is_public(host):
        raise ForbiddenAddress(f"{host} is no public address.")


def _taken_apart(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port of a URL that all parsers read alike. Raises ForbiddenAddress."""
    if len(url) > MAX_URL_CHARS or not _PLAIN.fullmatch(url):
        raise ForbiddenAddress(f"A URL has up to {MAX_URL_CHARS} printable ASCII characters and no backslash.")
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError as error:
        raise ForbiddenAddress(f"This is no URL: {error}.") from error
    if not parts.hostname or "@" in parts.netloc or parts.fragment:
        raise ForbiddenAddress("A URL has a host, and neither a user nor a fragment.")
    return parts.scheme, parts.hostname, port


def _is_literal(host: str) -> bool:
    """Is this an address? A name's addresses are checked when it is connected to."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


_PLAIN = re.compile(r"[!-\[\]-~]*")
_PORTS = {"https": 443, "http": 80}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
