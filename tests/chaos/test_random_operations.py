"""A random walk: loads, unloads, pins, changed folders, a killed engine, and requests among them.

Every answer is that of a content which the name had at some time between request and answer.
"""

from __future__ import annotations

import asyncio
import math
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2
import pytest

pytestmark = pytest.mark.e2e

SEED, SECONDS = 7, 12.0
LOADED, SHELVED = ("one", "two"), ("three", "four")  # the second are folders' names, too
MAX_RESIDENT = 5  # all four pinned, and what one of them meant before
BODY = {
    "prompt": "Once upon a time, in a land far away,",
    "max_tokens": 8,
    "ignore_eos": True,
    "temperature": 0,
}


@dataclass
class Change:
    """A name means `content` from some time between the two on; None is nothing."""

    content: str | None
    began: float = -math.inf
    ended: float = -math.inf
    certain: bool = True


@dataclass
class History:
    """What a name has meant."""

    changes: list[Change] = field(default_factory=lambda: [Change(None)])

    @contextmanager
    def change(self, content: str | None) -> Iterator[Change]:
        """A change under way; it may set `certain` to False, or be taken out."""
        change = Change(content, time.monotonic(), math.inf)
        self.changes.append(change)
        yield change
        change.ended = time.monotonic()

    def between(self, began: float, ended: float) -> set[str | None]:
        """All that the name may have meant then."""
        over = [c for c in self.changes if c.certain and c.ended < began]
        return {
            change.content
            for change in self.changes
            if change.began <= ended and not any(c.began >= change.ended != c.ended for c in over)
        }


class Walk:
    """The actors, and what they know of the server."""

    def __init__(self, http, server, contents, shelf, texts):
        self.http, self.server, self.contents, self.texts = http, server, contents, texts
        self.shelf, self.random = shelf, random.Random(SEED)
        self.loaded = {name: History() for name in (*LOADED, *SHELVED)}
        self.folders = {name: History() for name in SHELVED}
        self.is_down, self.answers, self.number = False, 0, 0

    def meanings(self, name, began, ended):
        found = self.loaded[name].between(began, ended)
        if None in found and name in self.folders:
            found = (found - {None}) | self.folders[name].between(began, ended)
        return found

    async def ask(self):
        name, was_down = self.random.choice(list(self.loaded)), self.is_down
        began = time.monotonic()
        response = await self.http.post("/v1/completions", json={**BODY, "model": name})
        meanings = self.meanings(name, began, time.monotonic())
        if response.status_code == 200:
            text = response.json()["choices"][0]["text"]
            assert text in {self.texts[content] for content in meanings - {None}}, (name, meanings)
            self.answers += 1
        elif response.status_code == 503:
            assert was_down or self.is_down, response.text
            await asyncio.sleep(0.2)
        else:
            assert response.status_code in (400, 404), response.text
            assert None in meanings, (name, response.text)

    async def load_or_unload(self):
        name, content = self.random.choice(list(self.loaded)), None
        if self.random.random() < 0.7:
            content = self.random.choice(list(self.contents))
        history, url = self.loaded[name], f"/v1/adapters/{name}"
        with history.change(content) as change:
            if content:
                response = await self.http.put(url, json={"path": str(self.contents[content])})
            else:
                response = await self.http.delete(url)
            if response.status_code == 404:
                history.changes.remove(change)
            else:
                assert response.status_code in (200, 201, 503), response.text
                change.certain = response.status_code != 503

    async def pin(self):
        name, body = self.random.choice(list(self.loaded)), {"pin": self.random.random() < 0.5}
        response = await self.http.put(f"/v1/adapters/{name}", json=body)
        allowed = {200, 404, 422, 503}  # 422: its folder has changed since it was read
        assert response.status_code in allowed, response.text

    async def replace_folder(self):
        name, content = self.random.choice(SHELVED), self.random.choice([*self.contents, None])
        self.number += 1
        new, old = (self.shelf.parent / f"{kind}{self.number}" for kind in ("new", "old"))
        if content:
            shutil.copytree(self.contents[content], new, copy_function=shutil.copyfile)
        with self.folders[name].change(None):
            if (self.shelf / name).exists():
                (self.shelf / name).rename(old)
        if content:
            with self.folders[name].change(content):
                new.rename(self.shelf / name)

    async def kill(self):
        await asyncio.sleep(SECONDS / 3)
        (engine,) = self.server.engines()
        self.is_down = True
        engine.kill()
        while not await asyncio.to_thread(self.is_back, engine):
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)  # what was refused before is answered by now
        self.is_down = False

    def is_back(self, engine):
        return not engine.is_running() and self.server.metrics()["turret_engine_up"] == 1

    async def act(self, operations, pause_s, until):
        while time.monotonic() < until:
            await self.random.choice(operations)()
            await asyncio.sleep(pause_s * self.random.random())


async def test_every_answer_is_what_its_name_meant(serve, save_lora, tmp_path, wait_until):
    # Of one shape: what is read while its folder is replaced is one or the other.
    contents = {f"c{i}": save_lora(tmp_path / "contents" / f"c{i}", 200 + i) for i in range(6)}
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    with serve(
        f"--adapter-root={tmp_path / 'contents'}",
        f"--adapter-dir={shelf}",
        f"--max-resident-adapters={MAX_RESIDENT}",
        "--kv-cache-gib=0.1",
    ) as server:
        async with httpx2.AsyncClient(base_url=server.url, timeout=60) as http:
            texts = {}
            for name, path in contents.items():
                await http.put("/v1/adapters/alone", json={"path": str(path)})
                answer = await http.post("/v1/completions", json={**BODY, "model": "alone"})
                texts[name] = answer.json()["choices"][0]["text"]
            assert len(set(texts.values())) > len(texts) / 2
            await http.delete("/v1/adapters/alone")
            walk, until = Walk(http, server, contents, shelf, texts), time.monotonic() + SECONDS
            names = server.metrics()["turret_adapters_loaded"]
            await asyncio.gather(
                *(walk.act([walk.ask], 0.02, until) for _ in range(4)),
                *(walk.act([walk.load_or_unload, walk.pin], 0.1, until) for _ in range(2)),
                walk.act([walk.replace_folder], 0.3, until),
                walk.kill(),
            )
            assert walk.answers > 20

            # Quiet again, and no more is left than there was at first.
            shutil.rmtree(shelf)
            assert (await http.get("/v1/models")).status_code == 200
            for name in walk.loaded:
                await http.delete(f"/v1/adapters/{name}")
            cards = (await http.get("/v1/adapters")).json()["data"]
            assert len(cards) == names
            assert not any(card["pinned"] or card["requests"] for card in cards)
            num_bytes = sum({card["digest"]: card["num_bytes"] for card in cards}.values())

            def is_as_before():
                metrics = server.metrics()
                gauges = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
                held = [metrics[f"turret_{gauge}"] for gauge in gauges]
                return not any(held) and metrics["turret_adapter_host_bytes"] <= num_bytes

            wait_until(is_as_before, 10, "requests, blocks and adapters leave the engine")
