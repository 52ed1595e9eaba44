"""Hundreds of tenants and adapters, clients of every kind, for minutes or hours.

    python -m bench.soak MODEL --folder ADAPTERS --seconds 180
    python -m bench.soak MODEL --folder ADAPTERS --adapters 1000 --tenants 100 --streams 256

Writes random LoRA adapters where they are missing, makes tenants with keys in a database, and sends
Zipf-distributed traffic: streams, whole answers, slow readers, clients that vanish, nonsense, and
adapters that are loaded, asked and unloaded all the while. Greedy answers are compared with those
of the quiet server. Ends with 1 if anything leaked, failed without a reason, or was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp
from bench.soak.traffic import Tenant, Traffic
from bench.soak.watch import growth_mib_per_min, held, leaks, look, watch

sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))

from deployment import Launch
from make_adapters import make_adapter
from process import free_port, running

from turret_server.loadtest.environment import describe_environment
from turret_server.loadtest.stats import distribution
from turret_server.tenancy.administration import Administration
from turret_server.tenancy.database import Database

ADMIN = "tk-operator-of-the-soak"
_RANK = 8


def make_tenants(url: str, count: int) -> list[Tenant]:
    """Tenants that may use everything, with a key each."""
    database = Database(url)
    admin = Administration(database, "soak")
    tenants = []
    for number in range(count):
        name = f"tenant-{number}"
        admin.create_tenant(name)
        admin.grant(name, ["*"])
        tenants.append(Tenant(name, admin.create_key(name)))
    database.close()
    return tenants


async def soak(args: argparse.Namespace, url: str, pid: int, tenants: list[Tenant]) -> Any:
    """Run the traffic; the report."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=600)
    models = [f"w{i}" for i in range(args.adapters)]
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        traffic = Traffic(session, url, tenants, models, max_tokens=args.max_tokens, seed=args.seed)
        await traffic.learn(min(args.checked, args.adapters))
        # Warm: every thread that is ever needed has been started.
        await traffic.clients(args.streams, time.monotonic() + args.seconds / 10)
        await held(session, url)
        quiet = look(pid, time.monotonic())
        traffic.outcomes.ttft_s.clear()
        until = time.monotonic() + args.seconds
        samples, *_ = await asyncio.gather(
            watch(pid, max(0.25, args.seconds / 400), until),
            traffic.clients(args.streams, until),
            traffic.churn(ADMIN, args.folder / "shelf" / models[0], args.churn, until),
        )
        left = await held(session, url)
        samples.append(look(pid, time.monotonic() - args.seconds))
    outcomes = traffic.outcomes
    return {
        "statuses": {str(status): n for status, n in sorted(outcomes.statuses.items())},
        "unexplained": outcomes.unexplained[:20],
        "num_unexplained": len(outcomes.unexplained),
        "answers_checked": outcomes.checked,
        "adapters_churned": outcomes.churned,
        "tenants_served": len(outcomes.tokens),
        "ttft_ms": distribution(outcomes.ttft_s),
        "memory_growth_mib_per_min": round(growth_mib_per_min(samples), 2),
        "before": asdict(quiet),
        "after": asdict(samples[-1]),
        "held": left,
        "leaks": leaks(samples, quiet, left),
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Start a server, and soak it."""
    shelf = args.folder / "shelf"
    for i in range(args.adapters):
        if not (shelf / f"w{i}").exists():
            make_adapter(args.model, shelf / f"w{i}", _RANK, args.seed + i)
    with tempfile.TemporaryDirectory() as folder:
        database = f"{folder}/turret.db"
        tenants = make_tenants(database, args.tenants)
        port = free_port()
        argv = [str(Path(sys.executable).with_name("turret")), "serve", str(args.model)]
        argv += ["--port", str(port), "--served-name", "base", "--log-level", "warning"]
        argv += ["--adapter-dir", str(shelf), "--adapter-root", str(shelf)]
        argv += ["--max-resident-adapters", str(args.places)]
        argv += ["--adapter-rank-rows", str(_RANK * args.places), "--max-model-len", "2048"]
        argv += ["--host-adapter-gib", str(args.host_gib), "--kv-cache-gib", str(args.kv_gib)]
        argv += ["--max-waiting", str(args.waiting)]
        argv += ["--database", database, "--state-dir", f"{folder}/state", "--admin-key", ADMIN]
        launch = Launch(argv=argv, ready_path="/ready")
        with running(launch, port, args.folder / "soak.log") as server:
            return asyncio.run(soak(args, f"http://127.0.0.1:{port}", server.group_id, tenants))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of the base model")
    parser.add_argument("--folder", type=Path, required=True, help="where the adapters lie")
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--adapters", type=int, default=40)
    parser.add_argument("--tenants", type=int, default=10)
    parser.add_argument("--streams", type=int, default=24, help="clients at once")
    parser.add_argument("--places", type=int, default=16, help="adapters on the device at once")
    parser.add_argument("--waiting", type=int, default=512, help="longest queue of the server")
    parser.add_argument("--churn", type=float, default=2.0, help="loads and unloads per second")
    parser.add_argument("--checked", type=int, default=10, help="adapters whose answers are held")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--host-gib", type=float, default=1.0, help="the server's host tier")
    # Memory is touched as it is used: a small cache is soon full, and shows a leak beside it.
    parser.add_argument("--kv-gib", type=float, default=0.25, help="the server's KV cache")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the report as JSON")
    return parser.parse_args(argv)


def main() -> None:
    """Do what the command line says."""
    args = parse()
    report = run(args)
    print(json.dumps(report, indent=1))
    if args.output is not None:
        settings = {k: v for k, v in vars(args).items() if isinstance(v, (int, float))}
        text = json.dumps({**describe_environment(), "settings": settings, **report}, indent=1)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n")
    raise SystemExit(1 if report["num_unexplained"] or report["leaks"] else 0)


if __name__ == "__main__":
    main()
