"""Reloads under traffic: no request fails, whatever changes below it."""

from __future__ import annotations

import asyncio
import shutil
import signal

import httpx2
import pytest

pytestmark = pytest.mark.e2e

RELOADS = 20


@pytest.fixture
def folders(adapters, tmp_path):
    """Four adapters, and a place whose content changes from one to the other."""
    one, even, odd, extra = list(adapters.values())[:4]
    shutil.copytree(even, tmp_path / "changing")
    return {
        **{"one": one, "even": even, "odd": odd, "extra": extra},
        "changing": tmp_path / "changing",
    }


@pytest.fixture
def write(folders, tmp_path):
    """Writes turret.toml for the n-th reload."""

    def write(number: int) -> None:
        shutil.copytree(
            folders["odd" if number % 2 else "even"], folders["changing"], dirs_exist_ok=True
        )
        extra = f'extra = "{folders["extra"]}"\n' if number % 2 else ""
        (tmp_path / "turret.toml").write_text(
            f'[adapters]\none = "{folders["one"]}"\nchanging = "{folders["changing"]}"\n{extra}'
            f'[recipes]\nboth = "one:0.{1 + number % 9}+changing:0.5"\n'
        )

    return write


async def test_no_request_fails_during_twenty_reloads(serve, write, tmp_path):
    write(0)
    with serve(f"--config={tmp_path / 'turret.toml'}", "--kv-cache-gib=0.3") as server:
        ended = asyncio.Event()
        statuses: list[int] = []

        async def ask(http, model):
            body = {"model": model, "prompt": "One, two,", "max_tokens": 8, "ignore_eos": True}
            while not ended.is_set():
                async with http.stream(
                    "POST", "/v1/completions", json={**body, "stream": True}
                ) as r:
                    lines = [line async for line in r.aiter_lines() if line]
                statuses.append(r.status_code)
                assert lines[-1] == "data: [DONE]", lines[-1]
                assert "error" not in lines[-2], lines[-2]

        async with httpx2.AsyncClient(base_url=server.url, timeout=60) as http:
            models = ["smollm2-135m-instruct", "one", "changing", "both", "one:0.5+changing"]
            asking = [asyncio.create_task(ask(http, model)) for model in models]
            for number in range(1, RELOADS + 1):
                write(number)
                answer = await http.post("/v1/admin/reload")
                assert answer.status_code == 200, answer.text
                assert {"adapters.changing", "adapters.extra", "recipes.both"} == set(
                    answer.json()["changed"]
                )
                await asyncio.sleep(0.05)
            ended.set()
            await asyncio.gather(*asking)
        assert len(statuses) > RELOADS
        assert set(statuses) == {200}
        assert server.metrics()["turret_adapters_loaded"] == 7  # the demo's five, and two


def test_a_signal_reloads_and_a_mistake_changes_nothing(serve, write, tmp_path, wait_until):
    write(0)
    file = tmp_path / "turret.toml"
    flags = (f"--config={file}", "--kv-cache-gib=0.1", "--log-level=info")
    with serve(*flags) as server:

        def names():
            return {c["id"] for c in httpx2.get(f"{server.url}/v1/models").json()["data"]}

        def hang_up(event):
            seen = len(server.lines)
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: event in "".join(server.lines[seen:]), 20, event)

        write(1)
        hang_up("configuration_reloaded")
        assert "extra" in names()
        file.write_text("[adapters\n")
        hang_up("configuration_not_reloaded")
        assert any("line 1" in line for line in server.lines)
        assert "extra" in names()
        file.write_text('drain_s = 1\n[adapters]\none = "/nowhere"\n')
        refused = httpx2.post(f"{server.url}/v1/admin/reload", timeout=60)
        assert refused.status_code == 422
        assert refused.json()["error"]["param"] == "adapters.one"
        assert {"one", "changing", "extra", "both"} <= names()
        write(2)
        file.write_text("max_running = 8\n" + file.read_text())
        answer = httpx2.post(f"{server.url}/v1/admin/reload", timeout=60)
        assert answer.json()["needs_restart"] == ["max_running"]
        assert "extra" not in names()
