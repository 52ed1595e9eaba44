"""What loading an adapter costs: itself, its first request, and everybody else.

    turret serve MODEL --adapter-root ADAPTERS
    python bench/cold_adapter.py ADAPTERS/a0 ADAPTERS/a1 ... --base MODEL_NAME

Two phases of equal length, with the same workers streaming from the base in the background and
one probe after another beside them. In the *warm* phase a probe asks for an adapter that is
loaded; in the *cold* phase it first loads one from disk (its file dropped from the page cache)
through `/v1/load_lora_adapter`, asks for it, and unloads it. The servers that speak vLLM's adapter
routes can all be measured so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from turret_server.loadtest.config import LoadConfig, Target
from turret_server.loadtest.driver import LoadRun, run_load
from turret_server.loadtest.environment import describe_environment
from turret_server.loadtest.lengths import Lengths
from turret_server.loadtest.record import Record
from turret_server.loadtest.stats import distribution

_PROBE_GAP_S = 0.5
_PROBE_TOKENS, _OTHERS_TOKENS = 8, 64
Probe = Callable[[int], Awaitable[Record]]


class Bench:
    """The server under test, and the requests sent to it."""

    def __init__(self, url: str, base: str, num_workers: int, session: aiohttp.ClientSession):
        self._url, self._base, self._num_workers = url.rstrip("/"), base, num_workers
        self._session = session
        self._seed = 0
        self.load_s: list[float] = []

    async def load(self, folder: Path) -> None:
        """Load an adapter under its folder's name, from disk and not from the page cache.

        Raises:
            RuntimeError: the server refuses.
        """
        for file in folder.glob("*.safetensors"):
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)  # only clean pages can be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        started_s = time.perf_counter()
        body = {"lora_name": folder.name, "lora_path": str(folder.resolve())}
        await self._post("/v1/load_lora_adapter", body)
        self.load_s.append(time.perf_counter() - started_s)

    async def unload(self, folder: Path) -> None:
        """Unload it.

        Raises:
            RuntimeError: the server refuses.
        """
        await self._post("/v1/unload_lora_adapter", {"lora_name": folder.name})

    async def ask(self, model: str) -> Record:
        """Send one request and return what was seen of it.

        Raises:
            RuntimeError: it failed.
        """
        run = await self._run(model, _PROBE_TOKENS, concurrency=1, num_requests=1)
        record = run.records[0]
        if record.error is not None:
            raise RuntimeError(f"A request for {model!r} failed: {record.error} {record.detail}")
        return record

    async def phase(self, seconds: float, probe: Probe) -> tuple[list[Record], LoadRun]:
        """Probe beside streaming workers; return the probes and the background."""
        background = asyncio.create_task(
            self._run(self._base, _OTHERS_TOKENS, concurrency=self._num_workers, duration_s=seconds)
        )
        probes = []
        while not background.done():
            await asyncio.sleep(_PROBE_GAP_S)
            probes.append(await probe(len(probes)))
        return probes, await background

    async def _run(self, model: str, output_tokens: int, **load: Any) -> LoadRun:
        self._seed += 1  # no prompt twice: no prefix cache answers
        return await run_load(
            LoadConfig(
                url=self._url,
                targets=(Target(model=model),),
                output_lengths=Lengths("fixed", output_tokens),
                seed=self._seed,
                **load,
            )
        )

    async def _post(self, path: str, body: dict[str, str]) -> None:
        async with self._session.post(self._url + path, json=body) as response:
            if response.status != 200:
                raise RuntimeError(f"{path} answered {response.status}: {await response.text()}")


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run both phases and return the numbers."""
    async with aiohttp.ClientSession() as session:
        bench = Bench(args.url, args.base, args.workers, session)
        warm_folder, *cold_folders = args.adapters

        async def warm_probe(_: int) -> Record:
            return await bench.ask(warm_folder.name)

        async def cold_probe(index: int) -> Record:
            folder = cold_folders[index % len(cold_folders)]
            await bench.load(folder)
            record = await bench.ask(folder.name)
            await bench.unload(folder)
            return record

        await bench.load(warm_folder)
        await bench.phase(2.0, warm_probe)
        bench.load_s.clear()
        warm, quiet = await bench.phase(args.seconds, warm_probe)
        cold, busy = await bench.phase(args.seconds, cold_probe)
        await bench.unload(warm_folder)
    phases = {"warm": (warm, quiet), "cold": (cold, busy)}
    numbers: dict[str, Any] = {"load_ms": distribution(bench.load_s)}
    for name, (probes, background) in phases.items():
        gaps_s = [gap for record in background.records for gap in record.gaps_s]
        numbers[name] = {
            "ttft_ms": distribution(r.ttft_s for r in probes if r.ttft_s is not None),
            "others_itl_ms": distribution(gaps_s),
            "others_errors": sum(record.error is not None for record in background.records),
        }
    numbers["ttft_p50_ratio"] = _ratio(numbers, "ttft_ms", "p50")
    numbers["others_itl_p99_ratio"] = _ratio(numbers, "others_itl_ms", "p99")
    return numbers


def _ratio(numbers: dict[str, Any], metric: str, percentile: str) -> float:
    return round(numbers["cold"][metric][percentile] / numbers["warm"][metric][percentile], 3)


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("adapters", type=Path, nargs="+", help="two adapter folders or more")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--base", required=True, help="name of the base model")
    parser.add_argument("--workers", type=int, default=4, help="streams in the background")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each phase")
    parser.add_argument("--output", type=Path, help="write the numbers as JSON")
    args = parser.parse_args()
    if len(args.adapters) < 2:
        parser.error("give two adapter folders or more: one stays loaded, the others come and go")
    numbers = asyncio.run(measure(args))
    print(json.dumps(numbers, indent=1))
    if args.output is not None:
        result = {**describe_environment(), "url": args.url, "workers": args.workers, **numbers}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
