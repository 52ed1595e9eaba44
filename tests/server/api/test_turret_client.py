"""Our own client against the app: what it sends about adapters is what the routes take."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest

from turret_client import AsyncClient, NotFound, Unprocessable


@pytest.fixture
async def turret(app) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(transport=httpx2.ASGITransport(app)) as client:
        yield client


async def test_a_load_is_held_to_its_digest(turret, engine):
    sql = await turret.adapters.load("sql", "sql")
    assert (sql.kind, sql.tier, sql.pinned, sql.base_match) == ("lora", "disk", False, True)
    assert sql.sites == {"q_proj": "0-29", "v_proj": "0-29"}
    assert (await turret.adapters.load("same", "sql", digest=f"sha256:{sql.digest}")).id == "same"
    with pytest.raises(Unprocessable, match="its digest is"):
        await turret.adapters.load("other", "json", digest=sql.digest)
    assert [adapter.id for adapter in await turret.adapters.list()] == ["sql", "same"]


async def test_pins(turret, engine):
    sql = await turret.adapters.load("sql", "sql", pin=True)
    assert engine.held == [sql.digest]
    assert not (await turret.adapters.unpin("sql")).pinned
    assert (await turret.adapters.pin("sql")).pinned
    with pytest.raises(NotFound):
        await turret.adapters.pin("json")


async def test_derived_adapters(turret, engine):
    for name in ("sql", "json"):
        await turret.adapters.load(name, name)
    made = await turret.adapters.derive("both", "ties", {"sql": 1, "json": 0.5}, density=0.2)
    assert (made.kind, made.source) == ("derived", "ties(sql, json:0.5, density=0.2)")
    assert made.notes == ("its rank drops 1.0%",)
    with pytest.raises(Unprocessable, match="needs a density"):
        await turret.adapters.derive("both", "ties", ["sql"])
    with pytest.raises(NotFound):
        await turret.adapters.derive("both", "sum", ["dates"])
    await turret.adapters.unload("both")
    with pytest.raises(NotFound):
        await turret.adapters.get("both")
