"""`turret serve demo` on a free port, for the clients to talk to."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import turret_adapters
from turret_server.demo import demo_model

_START_LIMIT_S = 600.0
_STOP_LIMIT_S = 60.0
_DEMO = Path(turret_adapters.__file__).parent / "demo"


class ServerFailed(RuntimeError):
    """The server ended, or did not come up in time; the message holds its last output."""


@dataclass(frozen=True, slots=True)
class DemoServer:
    """A running server.

    Attributes:
        description: what acceptance.Session needs to know of it, as JSON values.
    """

    description: dict[str, Any]


@contextmanager
def running(dtype: str, log: Path) -> Iterator[DemoServer]:
    """Serve the demo model with its adapters for the length of a `with` block.

    Raises:
        ServerFailed: it does not come up.
    """
    turret = Path(sys.executable).with_name("turret")
    command = [str(turret), "serve", "demo", "--port", "0", "--dtype", dtype]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            yield DemoServer(_describe(_wait(process, log)))
        finally:
            process.terminate()
            try:
                process.wait(_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], log: Path) -> str:
    """The URL, once the server says it."""
    deadline_s = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        if found := re.search(r"listening on (http://\S+)", log.read_text()):
            return found[1]
        time.sleep(0.2)
    tail = "\n".join(log.read_text().splitlines()[-20:])
    raise ServerFailed(f"the server did not come up (status {process.poll()})\n{tail}")


def _describe(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=60) as answer:
        models = json.load(answer)["data"]
    (base,) = (model["id"] for model in models if model["kind"] == "base")
    examples = json.loads((_DEMO / "examples.json").read_text())
    return {
        "url": url,
        "base": base,
        "examples": [{"adapter": name, **example} for name, example in examples.items()],
        "model_folder": str(demo_model(progress=False)),
        "adapter_folders": {name: str(_DEMO / name) for name in examples},
        "python": sys.executable,
    }
