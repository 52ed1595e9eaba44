"""A noisy neighbour, and ten times more than the server takes: what others notice.

    python bench/tenants.py demo --output bench/results/tenants.json

Starts a server with a database of five tenants and sends it closed loops:

- *alone*: the four quiet tenants, one worker each;
- *even*: the fifth as well, with one worker: what each could expect;
- *noisy*: the fifth with ten workers. The ratios compare first tokens and whole answers of the
  quiet ones with both phases before;
- *capped*: the same, but the fifth may have one answer in the batch at once (`running-requests`);
- *backlogged*: every tenant asks for more than its share, the fifth for ten times more, one has
  weight 2. Jain's index is over tokens served while it lasts, divided by weight.

Then another server, open, with a short queue: *peak* is a closed loop that fills it, *overload* is
ten times as many requests a second. The generator shares the cores with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from deployment import Launch
from process import free_port, running

from turret_server.loadtest.arrivals import Arrivals
from turret_server.loadtest.config import LoadConfig, Target, Tenant
from turret_server.loadtest.driver import run_load
from turret_server.loadtest.environment import describe_environment
from turret_server.loadtest.lengths import Lengths
from turret_server.loadtest.record import Record
from turret_server.loadtest.stats import distribution, jain_index
from turret_server.tenancy.administration import Administration
from turret_server.tenancy.database import Database

_QUIET = ("quiet-1", "quiet-2", "quiet-3", "quiet-4")
_NOISY = "noisy"
_WEIGHTS = {**dict.fromkeys(_QUIET, 1.0), "quiet-4": 2.0, _NOISY: 1.0}
_TIMES = 10
_SEEN_S = 3.0  # servers look for changes every second
_BACKLOG = 4  # workers of a tenant that always has something waiting


@contextmanager
def serving(args: argparse.Namespace, folder: Path, *flags: str) -> Iterator[str]:
    """A Turret; its address."""
    port = free_port()
    argv = [str(Path(sys.executable).with_name("turret")), "serve", str(args.model)]
    argv += ["--port", str(port), "--served-name", "base", "--log-level", "warning"]
    argv += ["--max-running", str(args.rows), "--kv-cache-gib", "0.5", *flags]
    with running(Launch(argv=argv, ready_path="/ready"), port, folder / "server.log"):
        yield f"http://127.0.0.1:{port}"


def config(args: argparse.Namespace, url: str, **changes: Any) -> LoadConfig:
    """Requests for the base model, as long as a phase lasts."""
    return LoadConfig(
        url=url,
        targets=(Target(model="base"),),
        output_lengths=Lengths("fixed", args.tokens),
        duration_s=args.seconds,
        **changes,
    )


async def phase(
    args: argparse.Namespace, url: str, keys: Mapping[str, str], workers: Mapping[str, int]
) -> dict[str, list[Record]]:
    """Closed loops of so many workers at once; what each tenant saw."""
    loads = [
        config(
            args,
            url,
            tenants=(Tenant(name=name, api_key=keys[name]),),
            concurrency=count,
            seed=args.seed + seed,
        )
        for seed, (name, count) in enumerate(workers.items())
    ]
    runs = await asyncio.gather(*(run_load(load) for load in loads))
    return {name: run.records for name, run in zip(workers, runs, strict=True)}


def latencies(records: Mapping[str, list[Record]]) -> dict[str, Any]:
    """Of the quiet tenants together, and what failed of anybody's."""
    quiet = [r for name in _QUIET for r in records[name] if r.error is None]
    return {
        "ttft_ms": distribution(r.ttft_s for r in quiet if r.ttft_s is not None),
        "e2e_ms": distribution(r.e2e_s for r in quiet),
        "errors": sum(r.error is not None for rs in records.values() for r in rs),
        "requests": {name: len(rs) for name, rs in records.items()},
    }


def served(args: argparse.Namespace, records: Mapping[str, list[Record]]) -> dict[str, Any]:
    """Tokens of answers that ended while all were at it, and how even they are by weight."""
    tokens = {
        name: sum(r.num_prompt_tokens + r.num_output_tokens for r in rs if r.end_s <= args.seconds)
        for name, rs in records.items()
    }
    shares = [tokens[name] / _WEIGHTS[name] for name in tokens]
    return {"tokens": tokens, "weights": _WEIGHTS, "jain": jain_index(shares)}


@contextmanager
def administration(database: str) -> Iterator[Administration]:
    """What admins do, done beside the server."""
    opened = Database(database)
    try:
        yield Administration(opened, "bench")
    finally:
        opened.close()


def limit(database: str, rows: int | None) -> None:
    """So many answers of the fifth in the batch at once, as soon as the server has seen it."""
    with administration(database) as admin:
        admin.change_tenant(_NOISY, quotas={"running_requests": rows})
    time.sleep(_SEEN_S)


def measure_tenants(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The phases with five tenants."""
    database = str(folder / "turret.db")
    with administration(database) as admin:
        for name, weight in _WEIGHTS.items():
            admin.create_tenant(name, weight=weight)
        keys = {name: admin.create_key(name) for name in _WEIGHTS}
    one_each = dict.fromkeys(_QUIET, 1)
    flags = (f"--database={database}", f"--state-dir={folder / 'state'}")
    result: dict[str, Any] = {}
    with serving(args, folder, *flags) as url:
        asyncio.run(phase(args, url, keys, one_each))  # warms up
        for name, workers in (
            ("alone", one_each),
            ("even", {**one_each, _NOISY: 1}),
            ("noisy", {**one_each, _NOISY: _TIMES}),
            ("capped", {**one_each, _NOISY: _TIMES}),
        ):
            if name == "capped":
                limit(database, 1)
            result[name] = latencies(asyncio.run(phase(args, url, keys, workers)))
        limit(database, None)
        backlog = {**dict.fromkeys(_QUIET, _BACKLOG), _NOISY: _TIMES * _BACKLOG}
        result["backlogged"] = served(args, asyncio.run(phase(args, url, keys, backlog)))
    result["ratios"] = {
        f"{name}_{metric}_{p}_to_{other}": round(
            result[name][f"{metric}_ms"][p] / result[other][f"{metric}_ms"][p], 3
        )
        for name in ("noisy", "capped")
        for other in ("alone", "even")
        for metric in ("ttft", "e2e")
        for p in ("p50", "p99")
    }
    return result


def measure_overload(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Goodput at the peak and at ten times as much; how long refusals take."""
    with serving(args, folder, f"--max-waiting={args.rows}") as url:
        peak = asyncio.run(run_load(config(args, url, concurrency=2 * args.rows, num_warmup=8)))
        good = sum(r.error is None and r.end_s <= args.seconds for r in peak.records)
        arrivals = Arrivals(rate_per_s=_TIMES * good / args.seconds)
        run = asyncio.run(run_load(config(args, url, arrivals=arrivals, seed=1)))
    kept = [r for r in run.records if r.error is None]
    shed = [r for r in run.records if r.error == "http_503"]
    in_time = sum(r.end_s <= args.seconds for r in kept)
    return {
        "peak_requests_per_s": round(good / args.seconds, 2),
        "requests_per_s": round(in_time / args.seconds, 2),
        "goodput_to_peak": round(in_time / good, 3),
        "sent": len(run.records),
        "shed": len(shed),
        "other_errors": len(run.records) - len(kept) - len(shed),
        "shed_ms": distribution(r.end_s - r.sent_s for r in shed),
        "served_ttft_ms": distribution(r.ttft_s for r in kept if r.ttft_s is not None),
    }


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="the base model: a folder, an id, or demo")
    parser.add_argument("--rows", type=int, default=8, help="requests in a batch")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each phase")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the numbers as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure_tenants(args, Path(folder))
        result["overload"] = measure_overload(args, Path(folder))
    print(json.dumps(result, indent=1))
    if args.output:
        settings = {name: getattr(args, name) for name in ("rows", "seconds", "tokens", "seed")}
        text = {**describe_environment(), "settings": settings, **result}
        args.output.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
