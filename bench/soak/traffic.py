"""Clients of every kind: they stream, wait, dawdle, vanish, send nonsense, load adapters."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from turret_server.loadtest.popularity import Popularity

PROMPTS = (
    "One, two, three,",
    "The capital of France is",
    "Once upon a time, in a land far away,",
    "List the planets of the solar system:",
    "def fibonacci(n):",
    "The recipe begins with two cups of",
)
_NONSENSE = (b"", b"{", b"[]", b'{"prompt": 1}', b'{"prompt": "x", "n": -1}', b"\xff" * 50)
_CHURN = "churn-{}"


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of requests, of 1; the rest streams to its end.

    Attributes:
        whole: not streamed.
        slow: streamed, and read slowly.
        vanish: given up at a random token.
        nonsense: no request at all.
    """

    whole: float = 0.2
    slow: float = 0.05
    vanish: float = 0.1
    nonsense: float = 0.02


@dataclass(slots=True)
class Outcomes:
    """What came of it all.

    Attributes:
        statuses: answers by status.
        unexplained: what no client can explain: 5xx, broken streams, false text.
        checked: answers that were compared with what the quiet server had said.
        ttft_s: seconds to the first token, of streams read at full speed.
        tokens: chunks of text by tenant.
        churned: adapters loaded, asked and unloaded.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)
    checked: int = 0
    ttft_s: list[float] = field(default_factory=list)
    tokens: Counter[str] = field(default_factory=Counter)
    churned: int = 0


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who asks: a name and its key."""

    name: str
    key: str


class Traffic:
    """Closed-loop clients of one server.

    Args:
        session: shared connections.
        url: root of the server.
        tenants: most active first; Zipf.
        models: most popular first; Zipf.
        expected: (model, prompt) -> the greedy answer of the quiet server.
        max_tokens: of every answer.
        mix: what clients do.
        seed: of all their choices.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        tenants: list[Tenant],
        models: list[str],
        *,
        max_tokens: int = 16,
        mix: Mix | None = None,
        seed: int = 0,
    ) -> None:
        self._session, self._url, self._tenants, self._models = session, url, tenants, models
        self._mix, self._max_tokens = mix or Mix(), max_tokens
        self._rng = random.Random(seed)
        zipf, drawn = Popularity("zipf", 1.0), np.random.default_rng(seed)
        self._tenant = zipf.choices(len(tenants), drawn)
        self._model = zipf.choices(len(models), drawn)
        self.expected: dict[tuple[str, str], str] = {}
        self.outcomes = Outcomes()

    async def learn(self, count: int) -> None:
        """Ask the quiet server, one by one, for what the busy one will be held to."""
        for model in self._models[:count]:
            for prompt in PROMPTS[:2]:
                status, body = await self._post(self._tenants[0], self._body(model, prompt))
                assert status == 200, body
                self.expected[model, prompt] = body["choices"][0]["text"]

    async def clients(self, count: int, until: float) -> None:
        """So many clients, each asking again as soon as it is answered, until a time."""

        async def client() -> None:
            while time.monotonic() < until:
                try:
                    await self._ask_something()
                except (aiohttp.ClientError, TimeoutError) as error:
                    self.outcomes.unexplained.append(repr(error))

        await asyncio.gather(*(client() for _ in range(count)))

    async def churn(self, admin: str, folder: Path, per_s: float, until: float) -> None:
        """Load an adapter, ask it, unload it, again and again."""
        number = 0
        while time.monotonic() < until:
            began, name = time.monotonic(), _CHURN.format(number)
            number += 1
            path, headers = f"{self._url}/v1/adapters/{name}", {"authorization": f"Bearer {admin}"}
            async with self._session.put(path, json={"path": str(folder)}, headers=headers) as r:
                loaded = r.status
            status, _ = await self._post(Tenant("admin", admin), self._body(name, PROMPTS[0]))
            async with self._session.delete(path, headers=headers) as r:
                unloaded = r.status
            if (loaded, unloaded) != (201, 200) or status not in (200, 429):
                self.outcomes.unexplained.append(f"churn: {loaded}, {status}, {unloaded}")
            self.outcomes.churned += 1
            await asyncio.sleep(max(0.0, 1 / per_s - (time.monotonic() - began)))

    async def _ask_something(self) -> None:
        tenant = self._tenants[next(self._tenant)]
        body = self._body(self._models[next(self._model)], self._rng.choice(PROMPTS))
        dice, mix = self._rng.random(), self._mix
        if (dice := dice - mix.nonsense) < 0:
            status, _ = await self._post(tenant, self._rng.choice(_NONSENSE))
            if not 400 <= status < 500:
                self.outcomes.unexplained.append(f"nonsense: {status}")
        elif (dice := dice - mix.whole) < 0:
            status, answer = await self._post(tenant, body)
            if status == 200:
                self._check(body, answer["choices"][0]["text"], tenant)
        elif (dice := dice - mix.vanish) < 0:
            await self._stream(tenant, body, leave_after=self._rng.randrange(self._max_tokens))
        else:
            await self._stream(tenant, body, pause_s=0.05 if dice < mix.slow else 0.0)

    async def _post(self, tenant: Tenant, body: dict[str, Any] | bytes) -> tuple[int, Any]:
        async with self._request(tenant, body) as response:
            self._count(response.status)
            answer = await response.json()
        await _wait_as_told(response)
        return response.status, answer

    async def _stream(
        self,
        tenant: Tenant,
        body: dict[str, Any],
        *,
        leave_after: int | None = None,
        pause_s: float = 0.0,
    ) -> None:
        began, text, ended = time.monotonic(), [], False
        async with self._request(tenant, {**body, "stream": True}) as response:
            self._count(response.status)
            if response.status != 200:
                await response.read()
                await _wait_as_told(response)
                return
            async for line in response.content:
                if line == b"data: [DONE]\n":
                    ended = True
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    self.outcomes.unexplained.append(f"in a stream: {event['error']['message']}")
                    return
                if not text and not pause_s:
                    self.outcomes.ttft_s.append(time.monotonic() - began)
                text.append(event["choices"][0]["text"])
                if leave_after is not None and len(text) > leave_after:
                    response.close()
                    return
                await asyncio.sleep(pause_s)
        if not ended:
            self.outcomes.unexplained.append("a stream ended without its end")
        self._check(body, "".join(text), tenant)

    def _request(self, tenant: Tenant, body: dict[str, Any] | bytes) -> Any:
        headers = {"authorization": f"Bearer {tenant.key}", "content-type": "application/json"}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._session.post(f"{self._url}/v1/completions", data=data, headers=headers)

    def _body(self, model: str, prompt: str) -> dict[str, Any]:
        return {
            "model": model,
            "prompt": prompt,
            "max_tokens": self._max_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }

    def _count(self, status: int) -> None:
        self.outcomes.statuses[status] += 1
        if status >= 500:
            self.outcomes.unexplained.append(f"status {status}")

    def _check(self, body: dict[str, Any], text: str, tenant: Tenant) -> None:
        self.outcomes.tokens[tenant.name] += self._max_tokens
        expected = self.expected.get((body["model"], body["prompt"]))
        if expected is None:
            return
        self.outcomes.checked += 1
        if text != expected:
            self.outcomes.unexplained.append(f"{body['model']}: {text!r}, quiet {expected!r}")


async def _wait_as_told(response: aiohttp.ClientResponse) -> None:
    if response.status == 429:
        await asyncio.sleep(float(response.headers["retry-after-ms"]) / 1000)
