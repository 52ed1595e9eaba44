"""The page of a live app that has seen a bit of everything, scraped twice."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest
from bench.dashboard.evaluate import History
from tests.server.api.conftest import (
    admin,
    database,
    engine,
    make_app,
    make_client,
    settings,
    tokenizer,
)
from tests.server.api.documents.conftest import InlineWorkers, page_of

from turret_server.tenancy.service import Tenancy, static_keys

__all__ = ["admin", "database", "engine", "make_app", "make_client", "settings", "tokenizer"]

ROOT = {"authorization": "Bearer tk-root"}
SCRAPED_AT = (0.0, 30.0)


@dataclass
class Live:
    """What Prometheus would know.

    Attributes:
        history: with the label `instance`.
        labels: of every metric name, those of all its series.
    """

    history: History
    labels: dict[str, set[str]]


@pytest.fixture
async def live(monkeypatch, tmp_path, database, admin, engine, make_client):
    monkeypatch.setattr("turret_server.api.documents.reader.DocumentWorkers", InlineWorkers)
    admin.create_tenant("acme")
    admin.grant("acme", ["sql"])
    acme = {"authorization": f"Bearer {admin.create_key('acme')}"}
    tenancy = Tenancy(static_keys([], ["tk-root"]), database, tmp_path / "usage")
    client = make_client(tenancy=tenancy)
    assert (
        await client.post("/v1/adapters/sql", {"path": "sql"}, ROOT, method="PUT")
    ).status == 201
    (sql,) = engine.loaded

    async def use():
        for model in ("demo", "sql", "nothing"):
            body = {"prompt": "Hi", "max_tokens": 3, "model": model}
            await client.post("/v1/completions", body, acme)
        await client.post("/v1/layout", {"document": {"data": page_of([["a", "b"]])}}, acme)
        done = engine.stats
        engine.stats = msgspec.structs.replace(
            done,
            resident_adapters=[sql],
            kv_blocks_total=128,
            prefix_queries=done.prefix_queries + 10,
            steps=done.steps + 10,
            step_tokens=done.step_tokens + 100,
            step_seconds=done.step_seconds + 0.5,
            step_sizes=[10 * (n + 1) for n in range(13)] if done.steps else [1] * 13,
        )

    history, labels = History(), {}
    with tenancy.meters.of(tenancy.tenants["acme"]).enter(tenancy.tenants["acme"]):
        for at_s in SCRAPED_AT:
            await use()
            page = (await client.get("/metrics", ROOT)).body.decode()
            history.add(at_s, page, instance="turret-0")
    for name, series in history.series():
        labels.setdefault(name, set()).update(label for label, _ in series)
    yield Live(history, labels)
    await tenancy.ledger.close()
