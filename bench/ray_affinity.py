"""Two replicas under Ray Serve: what affinity is worth, what the way through Ray costs, a death.

    python bench/ray_affinity.py --output bench/results/ray_affinity.json

Serves the demo model and random LoRA adapters from a shelf, more of them than a replica has places:

- *affinity* and *balanced*: the same closed loop, Zipf popularity, once with requests sent to where
  their adapters are and once by load alone. Reported is how many requests found their adapters on
  the device, as the replicas count it;
- *overhead*: single streams to the deployment and to a plain server with as many threads, in turn,
  so that neighbours on the machine disturb both, and the processor time of all that a token passes
  but the engine;
- *spill*: many requests at once for one adapter, by the replica that answered;
- *death*: a replica is killed while requests and streams run.

Needs turret[ray] and psutil. Takes about two minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from deployment import Launch
from make_adapters import make_adapter
from process import free_port, running

from turret_server.demo import demo_model
from turret_server.loadtest.config import LoadConfig, Target
from turret_server.loadtest.driver import run_load
from turret_server.loadtest.environment import describe_environment
from turret_server.loadtest.lengths import Lengths
from turret_server.loadtest.popularity import Popularity
from turret_server.loadtest.stats import distribution

_RANK = 8
_PASSED = ("ray::ProxyActor", "ray::ServeReplica:turret")  # what Ray's actors call themselves
_TURRET = str(Path(sys.executable).with_name("turret"))


@contextmanager
def serving(args: argparse.Namespace, shelf: Path, *command: str) -> Iterator[tuple[str, int]]:
    """A server, or several behind one address; the address, and the process."""
    port = free_port()
    argv = [_TURRET, *command, "demo", "--port", str(port), "--log-level", "warning"]
    argv += ["--adapter-dir", str(shelf), "--kv-cache-gib", "0.1", "--threads", "1"]
    argv += ["--max-resident-adapters", str(args.places + 5)]  # five come with the demo
    argv += ["--adapter-rank-rows", str(_RANK * args.places)]
    # Ray sets it for its workers: a plain server shall not have more threads than a replica.
    launch = Launch(argv=argv, ready_path="/ready", env={"OMP_NUM_THREADS": "1"})
    with running(launch, port, shelf.parent / "server.log") as server:
        yield f"http://127.0.0.1:{port}", server.group_id


async def page(url: str) -> str:
    """The metrics of all replicas."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as response:
        return await response.text()


async def residency(url: str) -> Counter[str]:
    """Requests for adapters so far, by whether these were on the device."""
    found: Counter[str] = Counter()
    pattern = r'^turret_replica_requests_total\{.*resident="(\w+)"\} (\S+)$'
    for resident, value in re.findall(pattern, await page(url), re.MULTILINE):
        found[resident] += int(float(value))
    return found


async def zipf(args: argparse.Namespace, url: str, names: list[str]) -> dict[str, Any]:
    """The closed loop, after one request for every adapter that is not counted."""
    async with aiohttp.ClientSession(url) as http:
        for name in reversed(names):
            await ask(http, name, 1)
    before = await residency(url)
    run = await run_load(
        LoadConfig(
            url=url,
            targets=tuple(Target(model=name) for name in names),
            popularity=Popularity("zipf", args.zipf),
            concurrency=args.workers,
            num_requests=args.requests,
            output_lengths=Lengths("fixed", 16),
            seed=args.seed,
        )
    )
    counted = await residency(url) - before
    done = [record for record in run.records if record.error is None]
    return {
        "resident_share": round(counted["true"] / counted.total(), 3),
        "requests": len(run.records),
        "errors": len(run.records) - len(done),
        "output_tokens_per_s": round(sum(r.num_output_tokens for r in done) / run.duration_s, 1),
        "ttft_ms": distribution(r.ttft_s for r in done if r.ttft_s is not None),
        "itl_ms": distribution(gap for r in done for gap in r.gaps_s),
    }


def cpu_s(pid: int) -> float:
    """Processor time so far of what a request passes through before and after the engine."""
    found = 0.0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with suppress(psutil.Error):
            if process.pid == pid or process.cmdline()[0].startswith(_PASSED):
                times = process.cpu_times()
                found += times.user + times.system
    return found


async def overhead(args: argparse.Namespace, servers: dict[str, tuple[str, int]]) -> dict[str, Any]:
    """Single streams, in turn."""
    records: dict[str, list[Any]] = {name: [] for name in servers}
    spent = dict.fromkeys(servers, 0.0)
    for turn in range(args.streams + 2):
        for name, (url, pid) in servers.items():
            config = LoadConfig(
                url=url,
                targets=(Target(model="sql"),),
                concurrency=1,
                num_requests=1,
                output_lengths=Lengths("fixed", 24),
                seed=turn,
            )
            before = cpu_s(pid)
            (record,) = (await run_load(config)).records
            if turn >= 2:
                records[name].append(record)
                spent[name] += cpu_s(pid) - before
    found: dict[str, Any] = {
        name: {
            "ttft_ms": distribution(r.ttft_s for r in of_name if r.ttft_s is not None),
            "itl_ms": distribution(gap for r in of_name for gap in r.gaps_s),
            "cpu_ms_per_token": round(1e3 * spent[name] / sum(r.num_events for r in of_name), 2),
        }
        for name, of_name in records.items()
    }
    for what in ("ttft_ms", "itl_ms"):
        added = found["ray"][what]["p50"] - found["plain"][what]["p50"]
        found[f"added_{what}"] = round(added, 2)
    return found


async def ask(http: aiohttp.ClientSession, model: str, tokens: int) -> tuple[int, str]:
    """One answer that is no stream: its status, and the replica it came from."""
    body = {"model": model, "prompt": "Hello", "max_tokens": tokens, "ignore_eos": True}
    async with http.post("/v1/completions", json=body) as response:
        await response.read()
        return response.status, response.headers.get("x-turret-replica", "")


async def stream(http: aiohttp.ClientSession, model: str, tokens: int) -> str:
    """How a stream ended."""
    body = {"model": model, "prompt": "Hello", "max_tokens": tokens, "ignore_eos": True}
    async with http.post("/v1/completions", json={**body, "stream": True}) as response:
        lines = [line async for line in response.content if line.strip()]
    if lines[-1].strip() != b"data: [DONE]":
        return "cut off"
    return "error and [DONE]" if b'{"error"' in lines[-2] else "whole"


async def spill(url: str, model: str) -> dict[str, int]:
    """Answers by replica, when many ask for one adapter at once."""
    async with aiohttp.ClientSession(url) as http:
        answers = await asyncio.gather(*(ask(http, model, 16) for _ in range(24)))
    return dict(Counter(replica for status, replica in answers if status == 200).most_common())


async def death(url: str, model: str) -> dict[str, Any]:
    """A replica dies in the middle of 12 requests and 4 streams."""
    async with aiohttp.ClientSession(url) as http:
        _, home = await ask(http, model, 1)
        whole = [asyncio.create_task(ask(http, model, 60)) for _ in range(12)]
        streams = [asyncio.create_task(stream(http, model, 100)) for _ in range(4)]
        await asyncio.sleep(0.7)
        actor_of(home).kill()
        killed = time.perf_counter()
        answers = await asyncio.gather(*whole)
        ends = await asyncio.gather(*streams)
    while home in (now := await page(url)) or now.count("turret_engine_up{") < 2:
        await asyncio.sleep(0.2)
    return {
        "requests": dict(Counter(str(status) for status, _ in answers)),
        "streams": dict(Counter(ends)),
        "replaced_after_s": round(time.perf_counter() - killed, 1),
    }


def actor_of(replica: str) -> psutil.Process:
    """The process of a replica: the one that writes the log of that name."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(replica in Path(file.path).name for file in process.open_files()):
                return process
    raise RuntimeError(f"no process of replica {replica} was found")


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both deployments, and a plain server beside the first."""
    model, shelf = demo_model(progress=False), folder / "shelf"
    names = [f"w{i}" for i in range(args.count)]
    for i, name in enumerate(names):
        make_adapter(model, shelf / name, _RANK, args.seed + i)
    deploy = ("deploy", "ray", "--replicas", "2", "--object-store-mib", "100")
    result: dict[str, Any] = {}
    with serving(args, shelf, *deploy, "--no-affinity") as (url, _):
        result["balanced"] = asyncio.run(zipf(args, url, names))
    with serving(args, shelf, *deploy) as (url, pid):
        result["affinity"] = asyncio.run(zipf(args, url, names))
        with serving(args, shelf, "serve") as plain:
            result["overhead"] = asyncio.run(overhead(args, {"plain": plain, "ray": (url, pid)}))
        result["spill"] = asyncio.run(spill(url, "sql"))
        result["death"] = asyncio.run(death(url, "sql"))
    return result


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=24, help="adapters")
    parser.add_argument("--places", type=int, default=14, help="adapters on a replica's device")
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--streams", type=int, default=20, help="for the overhead")
    parser.add_argument("--zipf", type=float, default=1.0, help="exponent of the popularity")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the numbers as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    print(json.dumps(result, indent=1))
    if args.output is not None:
        settings = {k: v for k, v in vars(args).items() if isinstance(v, (int, float))}
        text = json.dumps({**describe_environment(), "settings": settings, **result}, indent=1)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
