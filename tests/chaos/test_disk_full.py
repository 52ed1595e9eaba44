"""The disk takes no more under a server that accounts for its requests."""

from __future__ import annotations

import subprocess

import httpx2
import psutil
import pytest
from tests.conftest import TURRET

pytestmark = pytest.mark.e2e


def turret(*arguments, database):
    run = subprocess.run(
        [TURRET, *arguments, f"--database={database}"], capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def test_new_requests_are_refused_running_ones_go_on_and_room_helps(serve, tmp_path, wait_until):
    database = tmp_path / "turret.db"
    turret("tenants", "create", "acme", database=database)
    key = turret("keys", "create", "acme", database=database)
    headers = {"Authorization": f"Bearer {key}"}
    short = {"prompt": "One,", "max_tokens": 1}
    flags = (f"--database={database}", f"--state-dir={tmp_path}", "--kv-cache-gib=0.1")
    with serve(*flags) as server, httpx2.Client(base_url=server.url, headers=headers) as http:
        process = psutil.Process(server.process.pid)
        long = {"prompt": "One,", "max_tokens": 150, "ignore_eos": True, "stream": True}
        with http.stream("POST", "/v1/completions", json=long, timeout=60) as response:
            lines = (line for line in response.iter_lines() if line)
            next(lines)
            # No file may grow beyond a byte: what a full disk says, for this process alone.
            process.rlimit(psutil.RLIMIT_FSIZE, (1, psutil.RLIM_INFINITY))
            refused = http.post("/v1/completions", json=short)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "usage_not_recorded"
            assert int(refused.headers["retry-after"]) >= 1
            ready = http.get("/ready")
            assert ready.status_code == 503
            assert "cannot be recorded" in ready.json()["reasons"]["usage"]
            assert http.get("/health").status_code == 200
            *_, last = lines
        assert last == "data: [DONE]"
        process.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
        wait_until(lambda: http.get("/ready").status_code == 200, 10, "it takes requests again")
        assert http.post("/v1/completions", json=short, timeout=60).status_code == 200
    rows = turret("usage", "--json", database=database)
    assert '"requests": 2' in rows  # the refused one is none of them
    assert '"completion_tokens": 151' in rows
