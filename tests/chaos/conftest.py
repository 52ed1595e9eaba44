"""A small server to break, and clients that see every byte."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

MAX_RUNNING = MAX_WAITING = 32


@pytest.fixture(scope="session")
def names(adapters: dict[str, Path]) -> list[str]:
    """The adapters of the server."""
    return list(adapters)[:4]


@pytest.fixture(scope="session")
def server(serve: Callable[..., Any], adapters: dict[str, Path], names: list[str]) -> Iterator[Any]:
    """The demo model with four adapters, 32 requests in a batch and 32 in the queue."""
    with serve(
        *(f"--adapter={name}={adapters[name]}" for name in names),
        f"--adapter-root={next(iter(adapters.values())).parent}",
        f"--max-running={MAX_RUNNING}",
        f"--max-waiting={MAX_WAITING}",
        "--kv-cache-gib=0.5",
    ) as server:
        yield server


@pytest.fixture
def is_quiet(server: Any) -> Callable[[], bool]:
    """Nobody runs, nobody waits, and every KV block is free."""
    gauges = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")

    def quiet() -> bool:
        metrics = server.metrics()
        return metrics["turret_engine_up"] == 1 and not any(
            metrics[f"turret_{gauge}"] for gauge in gauges
        )

    return quiet


@pytest.fixture
async def http(
    server: Any, is_quiet: Callable[[], bool], wait_until: Callable[..., None]
) -> AsyncIterator[httpx2.AsyncClient]:
    """As many connections as a test opens; whatever it did with them, nothing stays held."""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=server.url, timeout=60, limits=limits) as http:
        yield http
    wait_until(is_quiet, 10, "requests and KV blocks return to zero")


@pytest.fixture
def completion() -> Callable[..., dict[str, Any]]:
    """A request that goes on and on, unless told otherwise."""

    def body(model: str | None = None, **fields: Any) -> dict[str, Any]:
        defaults = {"prompt": "One, two,", "max_tokens": 2000, "ignore_eos": True}
        return {**defaults, **({} if model is None else {"model": model}), **fields}

    return body


@pytest.fixture
def open_stream(http: httpx2.AsyncClient) -> Callable[..., Any]:
    """`async with open_stream(body) as events`: an iterator over the events of a stream."""

    @asynccontextmanager
    async def open_stream(body: dict[str, Any]) -> AsyncIterator[AsyncIterator[Any]]:
        request = http.build_request("POST", "/v1/completions", json={**body, "stream": True})
        response = await http.send(request, stream=True)
        try:
            assert response.status_code == 200, (await response.aread()).decode()
            yield _events(response)
        finally:
            await response.aclose()

    return open_stream


async def _events(response: httpx2.Response) -> AsyncIterator[Any]:
    """JSON events, and "[DONE]"."""
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield line[6:] if line == "data: [DONE]" else json.loads(line[6:])
