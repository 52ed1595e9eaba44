"""`turret serve` as a command: help, settings that cannot be served, start, and the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import psutil
import pytest

pytestmark = pytest.mark.e2e

TURRET = Path(sys.executable).with_name("turret")


def turret(*arguments, **environment):
    return subprocess.run(
        [TURRET, *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", **environment},
    )


def test_help_names_the_commands():
    run = turret("--help")
    assert run.returncode == 0
    assert all(f" {command} " in run.stdout for command in ("serve", "chat", "adapters", "bench"))


def test_help_of_serve_names_the_flags():
    run = turret("serve", "--help")
    assert run.returncode == 0
    flags = ("--adapter", "--adapter-root", "--port", "--dtype", "--max-model-len", "--api-key")
    assert all(flag in run.stdout for flag in flags)


def assert_refused(run, what):
    """Three lines: what, why, how to fix it; and no traceback."""
    assert run.returncode == 2, run.stderr
    said = " ".join(run.stderr.split())
    assert what in said
    assert "error:" in said
    assert "why:" in said
    assert "fix:" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["./no-such-model"], "no-such-model"),
        (["demo", "--dtype", "float8"], "float8"),
        (["demo", "--device", "tpu"], "tpu"),
        (["demo", "--quantization", "int2"], "int2"),
        (["demo", "--quantization", "fp8", "--device", "cpu"], "9.0 or newer"),
        (["demo", "--tensor-parallel", "2"], "over 2 processes"),
        (["demo", "--overlap", "maybe"], "maybe"),
        (["demo", "--adapter", "nameless"], "nameless"),
        (["demo", "--adapter", "a=one", "--adapter", "a=two"], "a=two"),
        (["demo", "--config", "no-such.toml"], "no-such.toml"),
        (["demo", "--max-model-len", "100000"], "100000"),
        (["demo", "--max-model-len", "8192", "--kv-cache-gib", "0.01"], "8192"),
        (["demo", "--adapter", "a=./no-such-adapter"], "no-such-adapter"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_setting_that_cannot_be_served_is_refused(arguments, what):
    assert_refused(turret("serve", "--port", "0", *arguments), what)


def test_an_unknown_setting_of_the_file_is_refused(tmp_path):
    (tmp_path / "turret.toml").write_text("kv_cache = 3\n")
    assert_refused(turret("serve", "demo", "--config", str(tmp_path / "turret.toml")), "kv_cache")


def test_an_architecture_that_is_not_served_is_refused(tmp_path, demo_folder):
    for file in demo_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((demo_folder / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    config |= {"architectures": ["FalconForCausalLM"], "model_type": "falcon"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_refused(turret("serve", str(tmp_path), "--port", "0"), "alcon")


def test_a_port_in_use_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert_refused(turret("serve", "demo", "--port", port), port)


def test_a_bad_port_names_the_flag():
    run = turret("serve", "demo", "--port", "70000")
    assert run.returncode == 2
    assert "--port" in run.stderr


def test_a_termination_lets_streams_finish(serve):
    """And then nothing is left: no process, no file, no port."""
    with serve() as server:
        left = server.descendants()
        body = {"prompt": "One", "max_tokens": 100, "ignore_eos": True, "stream": True}
        with httpx2.stream(
            "POST", f"{server.url}/v1/completions", json=body, timeout=120
        ) as response:
            lines = (line for line in response.iter_lines() if line)
            events = [next(lines)]
            server.process.send_signal(signal.SIGTERM)
            events += lines
        assert events[-1] == "data: [DONE]"
        assert len(events) == 101
        assert json.loads(events[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(timeout=30) == 0
        assert psutil.wait_procs(left, timeout=5)[1] == []
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{server.url}/health")


def test_an_interrupt_ends_it_cleanly(serve):
    with serve() as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=30) in (0, 130)
        assert "Traceback" not in "".join(server.lines)
