"""The dashboard after a minute of load: its own expressions, over pages scraped from a real server.

    python -m bench.dashboard docs/dashboard.png

Two tenants ask the demo model and three adapters, calmly, then in a burst, then not at all; one of
them has a small quota. Grafana is not needed: what deploy/grafana/turret.json asks is evaluated by
`evaluate.py` and drawn by `draw.py`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

from bench.dashboard.draw import draw
from bench.dashboard.evaluate import History
from bench.dashboard.panels import read_panels

sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))

from deployment import Launch
from process import free_port, running

from turret_server.tenancy.administration import Administration
from turret_server.tenancy.database import Database
from turret_server.tenancy.principal import Quotas

_BOARD = Path(__file__).parents[2] / "deploy/grafana/turret.json"
_TURRET = str(Path(sys.executable).with_name("turret"))
_MODELS = ("sql", "triage", "dates")
_ADMIN_KEY = "tk-of-the-bench"
_SCRAPE_S = 1.0
_PHASES = ((20.0, 2.0), (15.0, 8.0))  # seconds, requests per second; then it is quiet
_QUIET_S = 15.0


def main() -> None:
    """Serve, load, scrape, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="a PNG or SVG")
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        tenants = _make_tenants(Path(folder))
        with _served(Path(folder)) as url, _scraped(url) as history:
            began = time.monotonic()
            for seconds, rate in _PHASES:
                _load(url, tenants, seconds, rate)
            time.sleep(_QUIET_S)
            lasted = time.monotonic() - began
    draw(read_panels(_BOARD, rate_interval="10s"), history, (0.0, lasted), output)


def _make_tenants(folder: Path) -> dict[str, str]:
    """Two tenants and their keys."""
    database = Database(str(folder / "turret.db"))
    admin, keys = Administration(database, "bench"), {}
    for name, quotas in (("acme", Quotas()), ("small", Quotas(requests_per_minute=40))):
        admin.create_tenant(name, quotas=quotas)
        admin.grant(name, list(_MODELS))
        keys[name] = admin.create_key(name)
    database.close()
    return keys


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    port = free_port()
    argv = [_TURRET, "serve", "demo", "--port", str(port), "--log-level", "error"]
    argv += ["--database", str(folder / "turret.db"), "--state-dir", str(folder)]
    argv += ["--admin-key", _ADMIN_KEY]
    with running(Launch(argv=argv, ready_path="/ready"), port, folder / "server.log"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _scraped(url: str) -> Iterator[History]:
    """Pages, every second, for as long as it is open."""
    history, over = History(), threading.Event()
    request = Request(f"{url}/metrics", headers={"authorization": f"Bearer {_ADMIN_KEY}"})

    def scrape() -> None:
        began = time.monotonic()
        while not over.wait(_SCRAPE_S):
            at_s = time.monotonic() - began
            with urlopen(request) as page:
                history.add(at_s, page.read().decode(), instance=url.removeprefix("http://"))

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield history
    finally:
        over.set()
        thread.join()


def _load(url: str, tenants: dict[str, str], seconds: float, rate: float) -> None:
    flags = ["--duration", seconds, "--rate", rate, "--output-tokens", "uniform:8:40"]
    for model in _MODELS:
        flags += ["--model", model]
    for name, key in tenants.items():
        flags += ["--tenant", f"{name}={key}"]
    subprocess.run(
        [_TURRET, "bench", "serve", "--url", url, *map(str, flags)],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "NO_COLOR": "1"},
    )


if __name__ == "__main__":
    main()
