from __future__ import annotations

import pytest

from turret_server.engine.messages import OperationTime, Profiled
from turret_server.errors import Conflict
from turret_server.tenancy.service import Tenancy, static_keys


@pytest.fixture
def profiled(engine, tmp_path):
    """What the engine was asked for; it answers with two operations."""
    asked = []
    engine.trace = tmp_path / "trace.json"
    engine.num_steps = 4

    async def profile(steps, wait_s, *, trace=False):
        asked.append((steps, wait_s, trace))
        if trace and engine.trace is not None:
            engine.trace.write_text('{"traceEvents": []}')
        operations = [OperationTime("turret::forward", 4, 0.25, 0.5), OperationTime("a", 1, 0, 0)]
        path = str(engine.trace) if trace and engine.trace is not None else ""
        return Profiled("profile-1", engine.num_steps, 1.5, operations, path)

    engine.profile = profile
    return asked


async def test_the_operations_that_took_most_are_listed(client, profiled):
    answer = await client.post("/v1/admin/profile", {"steps": 4, "wait_s": 2})
    assert profiled == [(4, 2.0, False)]
    assert answer.json == {
        "steps": 4,
        "seconds": 1.5,
        "operations": [
            {"name": "turret::forward", "calls": 4, "own_s": 0.25, "total_s": 0.5},
            {"name": "a", "calls": 1, "own_s": 0.0, "total_s": 0.0},
        ],
    }


async def test_a_trace_is_streamed_and_removed(client, engine, profiled):
    answer = await client.post("/v1/admin/profile", {"trace": True})
    assert answer.json == {"traceEvents": []}
    assert answer.headers["content-type"] == "application/json"
    assert not engine.trace.exists()


@pytest.mark.parametrize(("steps", "words"), [(0, "no step"), (32, "too large")])
async def test_without_a_trace_it_says_why(client, engine, profiled, steps, words):
    engine.trace, engine.num_steps = None, steps
    answer = await client.post("/v1/admin/profile", {"trace": True})
    assert answer.status == 422
    assert words in answer.json["error"]["why"]


async def test_one_at_a_time(client, engine):
    async def busy(steps, wait_s, *, trace=False):
        raise Conflict("the engine is being profiled")

    engine.profile = busy
    assert (await client.post("/v1/admin/profile", {})).status == 409


@pytest.mark.parametrize(
    "body", [{"steps": 0}, {"steps": 33}, {"steps": 1e9}, {"wait_s": 0}, {"wait_s": 61}]
)
async def test_what_it_may_cost_is_bounded(client, profiled, body):
    assert (await client.post("/v1/admin/profile", body)).status == 400
    assert not profiled


async def test_it_is_for_admins(make_client, profiled):
    client = make_client(tenancy=Tenancy(static_keys(["tk-a"], ["tk-root"], metrics_keys=["tk-m"])))
    for key, status in (("tk-a", 403), ("tk-m", 403), ("tk-root", 200)):
        headers = {"authorization": f"Bearer {key}"}
        assert (await client.post("/v1/admin/profile", {}, headers)).status == status
    assert (await client.post("/v1/admin/profile", {})).status == 401
