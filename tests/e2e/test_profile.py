"""Profiling a server that answers meanwhile."""

from __future__ import annotations

import asyncio
import json
import subprocess

import pytest
from tests.conftest import TURRET

pytestmark = pytest.mark.e2e

PROFILE = "/v1/admin/profile"


async def test_steps_are_profiled_while_answers_stay_what_they_are(http):
    async def answer():
        body = {"prompt": "Once upon a time", "max_tokens": 64, "temperature": 0}
        return (await http.post("/v1/completions", json={**body, "ignore_eos": True})).json()

    alone = await answer()
    asking = asyncio.gather(answer(), answer())
    found = await http.post(PROFILE, json={"steps": 4})
    for together in await asking:
        assert together["choices"][0]["text"] == alone["choices"][0]["text"]
    assert found.status_code == 200
    card = found.json()
    calls = {row["name"]: row["calls"] for row in card["operations"]}
    assert card["steps"] == calls["turret::forward"] == calls["turret::build"] == 4


async def test_one_profile_at_a_time_and_an_idle_engine_ends_it(http):
    first = asyncio.create_task(http.post(PROFILE, json={"wait_s": 3}))
    await asyncio.sleep(0.5)
    second = await http.post(PROFILE, json={})
    assert second.status_code == 409
    assert (await first).json()["steps"] == 0
    trace = await http.post(PROFILE, json={"trace": True, "wait_s": 0.1})
    assert trace.status_code == 422


async def test_the_command_shows_a_table_or_writes_a_trace(server, http, tmp_path):
    async def keep_busy():
        body = {"prompt": "Hi", "max_tokens": 32, "ignore_eos": True}
        while True:
            await http.post("/v1/completions", json=body)

    def profile(*flags):
        command = [TURRET, "profile", "--url", server.url, "--steps", "2", *flags]
        return subprocess.run(command, capture_output=True, text=True, check=True)

    busy = asyncio.create_task(keep_busy())
    try:
        shown = await asyncio.to_thread(profile)
        file = tmp_path / "trace.json"
        await asyncio.to_thread(profile, "--trace", file)
    finally:
        busy.cancel()
    assert "turret::forward" in shown.stdout
    assert "2 steps" in shown.stderr
    events = json.loads(file.read_text())["traceEvents"]
    assert sum(event.get("name") == "turret::forward" for event in events) >= 2
