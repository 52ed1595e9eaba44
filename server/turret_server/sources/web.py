"""Documents behind http(s) URLs, fetched without becoming a way into the server's own network."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urljoin

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from turret_adapters.errors import quote
from turret_server.errors import BadRequest, FetchFailed, PayloadTooLarge, StartupError, TurretError
from turret_server.sources.urls import is_below, url_problem

_MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class WebLimits:
    """What one fetch may take.

    Attributes:
        max_bytes: of what it brings.
        timeout_s: for all of it, redirects too.
    """

    max_bytes: int = 16 << 20
    timeout_s: float = 30.0


def is_public(address: str) -> bool:
    """Is it an address of the internet at large, and none of a network of one's own?"""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or [None, None])[1]
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast


def check_prefixes(prefixes: Iterable[str]) -> None:
    """Check the URL prefixes that documents may be fetched from.

    Raises:
        StartupError: one is no URL of the web.
    """
    for prefix in prefixes:
        scheme, _, rest = prefix.partition("://")
        problem = None if scheme in ("http", "https") else "it begins with neither of http, https"
        if problem is None and rest:
            problem = url_problem(prefix)
        if problem is not None:
            raise StartupError(
                f"--document-remote {prefix!r} is not understood",
                problem,
                "Write a URL or the beginning of some, such as https://files.example.com/scans.",
            )


class Web:
    """Fetches documents from below some URL prefixes.

    Every address that a host resolves to is checked, and the connection goes to one that was.
    Redirects are followed to where a request could have gone itself.

    Args:
        prefixes: URLs, or beginnings of some; none allows nothing.
        limits: of one fetch.
        may_connect: tells whether an address may be connected to.
    """

    def __init__(
        self,
        prefixes: Sequence[str],
        limits: WebLimits,
        may_connect: Callable[[str], bool] = is_public,
    ) -> None:
        self._prefixes = tuple(prefixes)
        self._limits = limits
        self._may_connect = may_connect

    async def fetch(self, url: str) -> bytes:
        """What a URL holds.

        Raises:
            BadRequest: the URL is not allowed, leads elsewhere, or nothing is there.
            PayloadTooLarge: it is larger than allowed.
            FetchFailed: it cannot be read, or not in time.
        """
        what = f"{quote(url)} was not fetched"
        if not self._prefixes:
            raise BadRequest(
                what,
                "this server fetches nothing",
                "Send the file itself, in base64 or as a data URL; whoever runs the server can "
                "allow URLs with --document-remote.",
            )
        try:
            async with asyncio.timeout(self._limits.timeout_s), self._session(what) as session:
                return await self._follow(session, url, what)
        except TimeoutError as error:
            raise FetchFailed(
                what, f"it takes longer than {self._limits.timeout_s:g} s", "Send the file itself."
            ) from error
        except ValueError as error:  # also aiohttp's of a URL it cannot use
            raise BadRequest(what, f"it is no URL ({str(error)[:200]})", "Correct it.") from error
        except (aiohttp.ClientError, OSError) as error:
            # What a resolver of ours refused comes wrapped.
            raise _refusal(error) or FetchFailed(
                what, str(error)[:300] or type(error).__name__, "Check the URL."
            ) from error

    def _session(self, what: str) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_CheckedResolver(self._may_connect, what), use_dns_cache=False
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"Accept-Encoding": "identity"},
        )

    async def _follow(self, session: aiohttp.ClientSession, url: str, what: str) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            target = self._checked(url, what)
            async with session.get(target, allow_redirects=False) as response:
                if response.status not in _REDIRECTS:
                    return await self._body(response, what)
                url = urljoin(str(target), response.headers.get("Location", ""))
        raise BadRequest(what, f"it redirects more than {_MAX_REDIRECTS} times", "Use its end.")

    def _checked(self, url: str, what: str) -> URL:
        """The URL as it will be requested: what is compared must be what is asked for."""
        target = URL(url)
        if target.scheme not in ("http", "https") or not target.host:
            raise BadRequest(what, "it is no http:// or https:// URL", "Send the file itself.")
        if target.user is not None or target.password is not None:
            raise BadRequest(what, "it holds a user or a password", "Send the file itself.")
        if not any(is_below(str(target.with_fragment(None)), prefix) for prefix in self._prefixes):
            raise BadRequest(
                what,
                f"{quote(str(target))} is not below what the server may fetch from",
                "Send the file itself, or have the server started with another --document-remote.",
            )
        if _is_address(target.host) and not self._may_connect(target.host):
            raise _not_public(what, target.host)
        return target

    async def _body(self, response: aiohttp.ClientResponse, what: str) -> bytes:
        if response.status != 200:
            raise BadRequest(what, f"its server answers {response.status}", "Check the URL.")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise BadRequest(what, "its server sends it compressed", "Send the file itself.")
        limit, chunks, size = self._limits.max_bytes, [], 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > limit:
                raise PayloadTooLarge(
                    what, f"it has more than {limit:,} bytes", "Raise --max-document-mib."
                )
            chunks.append(chunk)
        return b"".join(chunks)


class _CheckedResolver(AbstractResolver):
    """Resolves a host, or refuses it for any of its addresses."""

    def __init__(self, may_connect: Callable[[str], bool], what: str) -> None:
        self._may_connect = may_connect
        self._what = what

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, family=family, type=socket.SOCK_STREAM
        )
        addresses = [(kind, str(address[0])) for kind, _, _, _, address in found]
        for _, address in addresses:
            if not self._may_connect(address):
                raise _not_public(self._what, host)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=kind,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, address in addresses
        ]

    async def close(self) -> None:
        """Nothing is held."""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _not_public(what: str, host: str) -> BadRequest:
    # The address itself is not told: names of the inside are not to be looked up from outside.
    return BadRequest(what, f"{quote(host)} is not on the public internet", "Send the file itself.")


def _refusal(error: BaseException | None) -> TurretError | None:
    while error is not None and not isinstance(error, TurretError):
        error = error.__cause__
    return error
