"""The API process is killed: the engine must not outlive it."""

from __future__ import annotations

import httpx2
import psutil
import pytest

pytestmark = pytest.mark.e2e


def test_no_process_is_left(serve):
    with serve("--kv-cache-gib=0.1") as server:
        # A grammar starts one more process, which tries grammars out.
        body = {"prompt": "x", "max_tokens": 4, "guided_regex": "[ab]{3}"}
        response = httpx2.post(f"{server.url}/v1/completions", json=body, timeout=60)
        assert response.status_code == 200, response.text
        body = {"prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        with httpx2.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as stream:
            next(stream.iter_lines())
            left = server.descendants()
            assert set(left) > set(server.engines()) != set()
            server.process.kill()
            server.process.wait()
            assert psutil.wait_procs(left, timeout=5)[1] == []
