"""What a server holds while it runs, and whether it holds more and more."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import aiohttp
import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families

# What a minute may add, in the second half of a run.
MAX_MIB_PER_MIN = 1.0
_HELD = ("turret_num_requests_running", "turret_num_requests_waiting", "turret_kv_cache_usage_perc")


@dataclass(frozen=True, slots=True)
class Sample:
    """One look: seconds since the first, MiB, open files and threads of all processes."""

    at_s: float
    rss_mib: float
    files: int
    threads: int


def look(pid: int, began: float) -> Sample:
    """Sum over a process and all below it."""
    rss = files = threads = 0
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        try:
            rss += process.memory_info().rss
            files += process.num_fds()
            threads += process.num_threads()
        except psutil.NoSuchProcess:
            continue
    return Sample(time.monotonic() - began, rss / 2**20, files, threads)


async def watch(pid: int, every_s: float, until: float) -> list[Sample]:
    """Look at a server's processes until a time."""
    began, samples = time.monotonic(), []
    while time.monotonic() < until:
        samples.append(look(pid, began))
        await asyncio.sleep(every_s)
    return samples


def growth_mib_per_min(samples: list[Sample]) -> float:
    """Least-squares slope of the memory over the second half, in which caches are full."""
    half = [s for s in samples if s.at_s >= samples[-1].at_s / 2]
    slope, _ = np.polyfit([s.at_s for s in half], [s.rss_mib for s in half], 1)
    return float(slope) * 60


def leaks(samples: list[Sample], quiet: Sample, held: dict[str, float]) -> list[str]:
    """What a run left behind.

    Args:
        samples: of the run.
        quiet: before it, warmed up.
        held: the gauges after it.
    """
    found = []
    last = samples[-1]
    # A slope over seconds is noise: what it comes to must be visible too.
    grown = growth_mib_per_min(samples)
    minutes = max(1.0, last.at_s / 120)
    if grown * minutes > max(16.0, MAX_MIB_PER_MIN * minutes):
        found.append(f"memory grows by {grown:.1f} MiB a minute")
    for name, slack in (("files", 8), ("threads", 8)):
        before, after = getattr(quiet, name), getattr(last, name)
        if after > before + slack:
            found.append(f"{name}: {after}, {before} before")
    found += [f"{name} is {value:g}" for name, value in held.items() if value]
    return found


async def held(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Gauges that must be 0 where nobody asks; up to 30 seconds are waited for it."""
    deadline = time.monotonic() + 30
    while True:
        async with session.get(f"{url}/metrics") as response:
            page = await response.text()
        found = {
            sample.name: sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name in _HELD
        }
        if not any(found.values()) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.2)
