"""Two real replicas under Ray Serve: affinity, spill, loads for all, deaths, and the end."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from tests.conftest import Server, running

import turret_adapters

pytest.importorskip("ray", reason="needs turret[ray], which the extra 'dev' installs")

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ADAPTERS = ("sql", "dates", "triage", "order-json")
_FLAGS = ["--kv-cache-gib=0.1", "--threads=1", "--object-store-mib=100"]


class Deployment(Server):
    """A `turret deploy ray` of its own.

    Attributes:
        left: what was left of the cluster when it had ended.
    """

    COMMAND = ("deploy", "ray")
    START_S = 180.0  # three actors, two engines; 20 s where nothing else runs

    def __init__(self, *arguments: str) -> None:
        super().__init__(*_FLAGS, *arguments)
        self.left: list[psutil.Process] = []

    def replica(self, replica_id: str) -> psutil.Process:
        """The actor of a replica: the one that writes the log of that name."""
        for process in self.descendants():
            with suppress(psutil.Error):
                if any(replica_id in Path(file.path).name for file in process.open_files()):
                    return process
        raise AssertionError(f"no process of replica {replica_id}")

    def gauges(self, name: str) -> dict[str, float]:
        """A gauge of every replica."""
        page = httpx2.get(f"{self.url}/metrics", timeout=30).text
        found = re.findall(rf'^{name}{{replica="(\w+)".*}} (\S+)$', page, re.MULTILINE)
        return {replica: float(value) for replica, value in found}

    def close(self) -> None:
        """End it as a service manager would."""
        below = self.descendants()
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        finally:
            self.left = psutil.wait_procs(below, timeout=10)[1]
            for process in self.left:
                process.kill()


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    root = Path(turret_adapters.__file__).parent / "demo"
    with running(Deployment("--replicas=2", f"--adapter-root={root}")) as deployment:
        yield deployment
    assert deployment.left == []


@pytest.fixture
async def http(deployment: Deployment) -> Any:
    async with httpx2.AsyncClient(base_url=deployment.url, timeout=120) as client:
        yield client


def body(model: str, tokens: int = 4, **fields: Any) -> dict[str, Any]:
    plain = {"model": model, "prompt": "Hello there", "max_tokens": tokens}
    return {**plain, "ignore_eos": True, "temperature": 0, **fields}


def replica_of(response: Any) -> str:
    return response.headers["x-turret-replica"]


async def test_an_adapter_stays_where_it_is(http):
    for name in ADAPTERS:
        seen = {replica_of(await http.post("/v1/completions", json=body(name))) for _ in range(3)}
        assert len(seen) == 1


async def test_a_hot_adapter_spills(http):
    answers = await asyncio.gather(
        *(http.post("/v1/completions", json=body("sql", 8)) for _ in range(24))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert len({replica_of(answer) for answer in answers}) == 2


async def test_headers_and_refusals_pass(http):
    answer = await http.post(
        "/v1/completions", json=body("nobody"), headers={"x-request-id": "mine"}
    )
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert answer.headers.get_list("x-request-id") == ["mine"]
    answer = await http.post("/v1/completions", content=b"x" * (21 << 20))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")


async def test_a_load_at_run_time_is_on_every_replica(http, deployment):
    before = deployment.gauges("turret_adapters_loaded")
    answer = await http.put("/v1/adapters/late", json={"path": "sql"})
    assert answer.status_code == 201
    assert deployment.gauges("turret_adapters_loaded") == {k: v + 1 for k, v in before.items()}
    answers = [await http.post("/v1/completions", json=body("late")) for _ in range(2)]
    assert {answer.status_code for answer in answers} == {200}


async def test_a_client_that_leaves_frees_its_replica(http, deployment, wait_until):
    async with http.stream(
        "POST", "/v1/completions", json=body("sql", 4000, stream=True)
    ) as response:
        await anext(response.aiter_lines())
        busy = deployment.gauges
        wait_until(lambda: sum(busy("turret_num_requests_running").values()) == 1, 10, "it runs")
    for name in ("turret_num_requests_running", "turret_kv_cache_usage_perc"):
        wait_until(lambda name=name: sum(deployment.gauges(name).values()) == 0, 10, f"{name} is 0")


def test_nobody_else_may_use_the_cluster(deployment):
    """Ray's ports run what they are sent: they want a secret, and there is no dashboard."""
    daemons = [p for p in deployment.descendants() if p.name() in ("raylet", "gcs_server")]
    assert len(daemons) == 2
    for daemon in daemons:
        environment = daemon.environ()
        assert environment["RAY_AUTH_MODE"] == "token"
        assert len(environment["RAY_AUTH_TOKEN"]) == 64
        assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    port = int(deployment.url.rpartition(":")[2])
    listening = {
        connection.laddr.ip
        for process in deployment.descendants()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }
    assert listening == {"127.0.0.1"}


async def test_a_replica_is_killed_under_load(
    http: Any, deployment: Deployment, wait_until: Callable[..., None]
) -> None:
    """No request is lost, streams end with an error and [DONE], and another replica comes."""
    home = replica_of(await http.post("/v1/completions", json=body("sql")))
    before = deployment.gauges("turret_adapters_loaded")
    actor = deployment.replica(home)
    engines = actor.children(recursive=True)

    async def stream() -> list[str]:
        asked = body("sql", 4000, stream=True)
        async with http.stream("POST", "/v1/completions", json=asked) as response:
            assert response.status_code == 200
            return [line async for line in response.aiter_lines() if line]

    whole = [
        asyncio.create_task(http.post("/v1/completions", json=body("sql", 60))) for _ in range(6)
    ]
    streams = [asyncio.create_task(stream()) for _ in range(2)]
    while deployment.gauges("turret_num_requests_running")[home] < 3:
        await asyncio.sleep(0.05)
    actor.kill()
    answers = await asyncio.gather(*whole)
    assert [answer.status_code for answer in answers] == [200] * 6
    assert psutil.wait_procs(engines, timeout=10)[1] == []
    ended = [await task for task in streams if await _ends(task)]
    assert ended, "no stream was at the replica that died"
    for lines in ended:
        assert lines[-1] == "data: [DONE]"
        error = json.loads(lines[-2].removeprefix("data: "))["error"]
        assert error["code"] == "engine_unavailable"
    for task in streams:
        task.cancel()
    wait_until(lambda: _replaced(deployment, home, before), 60, "another, with every adapter")


async def _ends(task: asyncio.Task[list[str]]) -> bool:
    """Did it end by itself? One at the other replica goes on for minutes."""
    return bool((await asyncio.wait({task}, timeout=2))[0])


def _replaced(deployment: Deployment, home: str, before: dict[str, float]) -> bool:
    now = deployment.gauges("turret_adapters_loaded")
    return home not in now and sorted(now.values()) == sorted(before.values())
