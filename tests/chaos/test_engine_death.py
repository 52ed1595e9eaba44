"""The engine process is killed under load: clean errors at once, and service again by itself."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e


@pytest.fixture
async def answers(http, names):
    """Greedy answers of the base and of every adapter, as a function."""

    async def ask(model):
        body = {"prompt": "One, two,", "max_tokens": 6, "temperature": 0}
        if model:
            body["model"] = model
        response = await http.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["text"]

    async def all_answers():
        return await asyncio.gather(*(ask(model) for model in [None, *names]))

    return all_answers


async def test_killed_under_streams(
    server, http, names, answers, completion, open_stream, wait_until
):
    expected = await answers()
    engine = server.engines()[0]
    killed_at = 0.0
    running = asyncio.Semaphore(0)

    async def stream(i):
        """The last events, and how long after the kill the end came."""
        model = [None, *names][i % (1 + len(names))]
        last = []
        async with open_stream(completion(model)) as events:
            async for event in events:
                if not last:
                    running.release()
                last = [*last[-1:], event]
        return last, time.monotonic() - killed_at

    streams = [asyncio.create_task(stream(i)) for i in range(32)]
    for _ in streams:
        await running.acquire()
    # One that has no answer yet gets a status instead of an event.
    whole = asyncio.create_task(http.post("/v1/completions", json=completion()))
    await asyncio.to_thread(
        wait_until, lambda: server.metrics()["turret_num_requests_waiting"] == 1, 10, "it waits"
    )
    killed_at = time.monotonic()
    engine.kill()
    async with asyncio.timeout(20):  # comments keep a silent stream open for ever
        ends = await asyncio.gather(*streams)

    for (error, done), delay in ends:
        assert error["error"]["code"] == "engine_unavailable"
        assert error["error"]["fix"]
        assert done == "[DONE]"
        assert delay < 1
    response = await whole
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1

    # Not ready until it can answer again, for all its adapters, as before.
    assert (await http.get("/ready")).status_code == 503
    assert (await http.post("/v1/completions", json=completion())).status_code == 503
    while (await http.get("/ready")).status_code != 200:
        assert time.monotonic() - killed_at < 10
        await asyncio.sleep(0.02)
    assert await answers() == expected
    assert not engine.is_running()
    assert len(server.engines()) == 1


async def test_a_seed_means_the_same_tokens_after_a_restart(
    server, http, names, completion, wait_until, is_quiet
):
    async def sampled():
        bodies = [
            completion(model, max_tokens=12, temperature=1.0, seed=seed, logprobs=1)
            for model in [None, *names]
            for seed in (1, 2)
        ]
        answers = await asyncio.gather(*(http.post("/v1/completions", json=b) for b in bodies))
        return [answer.json()["choices"][0]["logprobs"]["tokens"] for answer in answers]

    expected = await sampled()
    assert len(set(map(tuple, expected))) > len(names)
    (engine,) = server.engines()
    engine.kill()
    wait_until(lambda: not engine.is_running(), 10, "the engine is dead")
    wait_until(is_quiet, 60, "another is up")
    assert await sampled() == expected


async def test_killed_while_it_comes_back(server, http, wait_until, is_quiet):
    """The supervisor survives an engine that never served."""
    (first,) = server.engines()
    first.kill()
    wait_until(lambda: server.engines() not in ([], [first]), 10, "another engine is started")
    (second,) = server.engines()
    second.kill()
    wait_until(is_quiet, 20, "the engine after the next is up")
    (third,) = server.engines()
    assert third not in (first, second)
    assert (await http.get("/ready")).status_code == 200


async def test_killed_after_its_sockets_were_cleaned_away(
    server, http, completion, wait_until, is_quiet
):
    """What cleans temporary files may take an idle server's; once it never got an engine again."""
    (engine,) = server.engines()
    shutil.rmtree(Path(engine.cmdline()[-1].removeprefix("ipc://")).parent)
    response = await http.post("/v1/completions", json=completion(max_tokens=2))
    assert response.status_code == 200, response.text
    engine.kill()
    wait_until(lambda: not engine.is_running(), 10, "the engine is dead")
    wait_until(is_quiet, 60, "another is up")
    response = await http.post("/v1/completions", json=completion(max_tokens=2))
    assert response.status_code == 200, response.text


async def test_killed_after_the_folder_of_an_adapter_was_removed(
    server, http, adapters, names, answers, completion, wait_until, is_quiet
):
    """All the others are served again; once no engine served any more."""
    expected = await answers()
    folder = adapters[names[0]].parent / "leaving"
    shutil.copytree(adapters["r8-qv"], folder)
    response = await http.put("/v1/adapters/leaving", json={"path": str(folder)})
    assert response.status_code == 201, response.text
    shutil.rmtree(folder)
    (engine,) = server.engines()
    engine.kill()
    wait_until(lambda: not engine.is_running(), 10, "the engine is dead")
    wait_until(is_quiet, 60, "another is up")
    assert await answers() == expected
    assert (await http.post("/v1/completions", json=completion("leaving"))).status_code == 404
    assert (await http.delete("/v1/adapters/leaving")).status_code == 200
