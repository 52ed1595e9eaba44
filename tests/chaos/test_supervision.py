"""The engine raises, or hangs: its supervisor notices, tells the waiting, and starts another."""

from __future__ import annotations

import asyncio

import pytest

from turret_server.engine.link import EngineLink
from turret_server.engine.messages import AdapterUse, EngineRequest, Sampling
from turret_server.engine.settings import EngineSettings
from turret_server.errors import EngineUnavailable, Unprocessable

pytestmark = pytest.mark.e2e

HANG_S = 3.0
SLOTS = 3


@pytest.fixture
async def link(demo_folder):
    settings = EngineSettings(
        model=str(demo_folder),
        kv_cache_bytes=256 << 20,
        max_resident_adapters=SLOTS,
        faults=True,
    )
    link = EngineLink(settings, hang_s=HANG_S)
    await link.start()
    yield link
    await link.close()


def request(number, *, adapters=(), prompt=(1, 2, 3), max_tokens=2000):
    return EngineRequest(
        id=f"request-{number}",
        prompt=list(prompt),
        sampling=Sampling(temperature=0, max_tokens=max_tokens),
        adapters=adapters,
    )


async def tokens(link, request):
    return [token async for event in link.generate(request) for token in event.tokens]


async def restarted(link, times):
    async with asyncio.timeout(60):
        while link.restarts < times or link.ready is None:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("fault", ["raise", "exit", "hang"])
async def test_it_comes_back_with_its_adapters(link, adapters, fault):
    info = await link.load_adapter("r8", str(adapters["r8"]))
    adapted = {"adapters": (AdapterUse(info.digest),), "max_tokens": 4}
    expected = await tokens(link, request(0, **adapted))

    first = asyncio.Event()

    async def stream(number):
        async for _ in link.generate(request(number)):
            first.set()

    streams = [asyncio.create_task(stream(number)) for number in range(1, 4)]
    await first.wait()
    await link.inject_fault(fault)
    results = await asyncio.gather(*streams, return_exceptions=True)
    assert [type(result) for result in results] == [EngineUnavailable] * 3

    await restarted(link, 1)
    # At once: whoever finds it ready finds the adapters too.
    assert await tokens(link, request(9, **adapted)) == expected


async def test_what_was_pinned_is_pinned_again(link, adapters):
    infos = [await link.load_adapter(name, str(path)) for name, path in adapters.items()]
    assert len(infos) > SLOTS
    held = infos[-1].digest  # not the one that a restart would warm first
    await link.hold_adapters([held])
    with pytest.raises(Unprocessable, match="cannot be pinned"):
        await link.hold_adapters([info.digest for info in infos])
    await link.inject_fault("exit")
    await restarted(link, 1)
    for info in infos[:-1]:  # each needs the place of another, and never that one
        use = {"adapters": (AdapterUse(info.digest),), "max_tokens": 1}
        assert len(await tokens(link, request(info.digest, **use))) == 1
    await asyncio.sleep(0.5)  # figures come a few times a second
    assert held in link.stats.resident_adapters


async def test_idleness_is_no_hang(link):
    """It said nothing while it had nothing to do; then a long prompt comes."""
    pid = link.ready.pid
    await asyncio.sleep(HANG_S * 1.2)
    assert len(await tokens(link, request(0, prompt=[5] * 4000, max_tokens=2))) == 2
    assert (link.restarts, link.ready.pid) == (0, pid)
