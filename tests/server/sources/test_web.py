from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from turret_server.errors import BadRequest, FetchFailed, PayloadTooLarge, StartupError
from turret_server.sources.web import Web, WebLimits, check_prefixes, is_public


@dataclass
class Site:
    """A web server on the loopback."""

    url: str = ""
    asked: list[str] = field(default_factory=list)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()

    async def answer(request: web.Request) -> web.StreamResponse:
        site.asked.append(request.path)
        match request.path:
            case "/scans/a.png":
                return web.Response(body=b"picture")
            case "/scans/large":
                response = web.StreamResponse()
                await response.prepare(request)
                for _ in range(100):
                    await response.write(b"x" * 1000)
                return response
            case "/scans/slow":
                await asyncio.sleep(60)
            case "/scans/moved":
                raise web.HTTPFound("/scans/a.png")
            case "/scans/out":
                raise web.HTTPFound("/secret")
            case "/scans/inside":
                raise web.HTTPFound("http://169.254.169.254/latest")
            case "/scans/circle":
                raise web.HTTPFound("/scans/circle")
            case "/scans/zipped":
                return web.Response(body=b"x", headers={"Content-Encoding": "gzip"})
        return web.Response(status=404)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    site.url = f"http://{host}:{port}"
    yield site
    await runner.cleanup()


@pytest.fixture
def opened(site: Site) -> Web:
    """May fetch below /scans/, from the loopback too."""
    limits = WebLimits(max_bytes=50_000, timeout_s=0.5)
    return Web([f"{site.url}/scans", "http://169.254.169.254"], limits, lambda _: True)


async def test_a_document_is_fetched(opened: Web, site: Site) -> None:
    assert await opened.fetch(f"{site.url}/scans/a.png") == b"picture"
    assert await opened.fetch(f"{site.url}/scans/a.png?size=2#top") == b"picture"
    assert await opened.fetch(f"{site.url}/scans/moved") == b"picture"


@pytest.mark.parametrize(
    ("path", "error", "why"),
    [
        ("/secret", BadRequest, "not below"),
        ("/scans/../secret", BadRequest, "not below"),
        ("/scans/%2e%2e/secret", BadRequest, "not below"),
        ("/scansecret", BadRequest, "not below"),
        ("/scans/out", BadRequest, "not below"),
        ("/scans/circle", BadRequest, "redirects more than"),
        ("/scans/missing", BadRequest, "answers 404"),
        ("/scans/zipped", BadRequest, "compressed"),
        ("/scans/large", PayloadTooLarge, "50,000 bytes"),
        ("/scans/slow", FetchFailed, "longer than"),
    ],
)
async def test_what_is_not_fetched(
    opened: Web, site: Site, path: str, error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        await opened.fetch(site.url + path)
    assert "/secret" not in site.asked


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a/b",
        "file:///etc/passwd",
        "nonsense",
        "http://",
        "http://[bad/",
        "http://u:p@127.0.0.1/",
    ],
)
async def test_what_is_no_url(url: str) -> None:
    with pytest.raises(BadRequest):
        await Web(["http://", "https://", "ftp://", "file://"], WebLimits()).fetch(url)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"])
async def test_the_servers_own_network_is_out_of_reach(site: Site, host: str) -> None:
    port = site.url.rpartition(":")[2]
    with pytest.raises(BadRequest, match="not on the public internet"):
        await Web(["http://"], WebLimits(timeout_s=2)).fetch(f"http://{host}:{port}/scans/a.png")
    assert site.asked == []


async def test_a_redirect_into_a_private_network_is_not_followed(site: Site) -> None:
    web = Web(["http://"], WebLimits(timeout_s=2), lambda a: a == "127.0.0.1")
    with pytest.raises(BadRequest, match=r"169\.254\.169\.254"):
        await web.fetch(f"{site.url}/scans/inside")


async def test_the_address_that_was_checked_is_connected_to(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that resolves to something else the next time (DNS rebinding) gains nothing."""
    loop, answers = asyncio.get_running_loop(), ["127.0.0.1", "127.0.0.2"]
    port = int(site.url.rpartition(":")[2])
    resolve = loop.getaddrinfo

    async def rebinding(host, *args, **options):
        return await resolve(answers.pop(0) if host == "scans.test" else host, *args, **options)

    monkeypatch.setattr(loop, "getaddrinfo", rebinding)
    checked: list[str] = []
    web = Web(["http://"], WebLimits(timeout_s=2), lambda a: not checked.append(a))
    assert await web.fetch(f"http://scans.test:{port}/scans/a.png") == b"picture"
    assert checked == ["127.0.0.1"]
    assert answers == ["127.0.0.2"]


async def test_one_private_address_among_several_is_enough_to_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def both(*_, **__):
        return [(2, 1, 6, "", (address, 80)) for address in ("93.184.216.34", "10.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", both)
    with pytest.raises(BadRequest, match="not on the public internet"):
        await Web(["http://"], WebLimits(timeout_s=2)).fetch("http://both.test/")


async def test_nothing_is_fetched_unless_allowed() -> None:
    with pytest.raises(BadRequest, match="--document-remote"):
        await Web([], WebLimits()).fetch("https://example.com/a.png")


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


PRIVATE = """
    127.0.0.1 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1
    240.0.0.1 255.255.255.255 192.0.2.1 ::1 :: fe80::1 fe80::1%eth0 fc00::1 ff02::1 2001:db8::1
    ::ffff:127.0.0.1 64:ff9b::7f00:1 64:ff9b::a00:1 2002:7f00:1::
    2001:0:4136:e378:8000:63bf:80ff:fffe
"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_addresses_of_ones_own(address: str) -> None:
    assert not is_public(address)


def test_prefixes_of_the_configuration() -> None:
    check_prefixes(["https://", "https://files.example.com/scans", "http://a:8080"])
    for bad in ("files.example.com", "ftp://a", "https://u:p@a", "https://a/?b", "https://a/../b"):
        with pytest.raises(StartupError, match="--document-remote"):
            check_prefixes([bad])
