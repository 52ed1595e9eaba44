"""Drive a load: a closed loop of workers, or arrivals that wait for nobody."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from turret_server.loadtest.client import Client
from turret_server.loadtest.workload import RequestSpec, Workload

if TYPE_CHECKING:
    from turret_server.loadtest.config import LoadConfig
    from turret_server.loadtest.record import Record

OnRecord = Callable[["Record"], None]


@dataclass(slots=True, kw_only=True)
class LoadRun:
    """What a run produced.

    Attributes:
        records: the measured requests, in order of completion.
        duration_s: from the start to the end of the last request.
        generator_cpu_s: processor time that the generator itself used meanwhile.
        warmup_errors: kinds of error among the warm-up requests.
    """

    records: list[Record] = field(default_factory=list)
    duration_s: float = 0.0
    generator_cpu_s: float = 0.0
    warmup_errors: list[str] = field(default_factory=list)


async def run_load(config: LoadConfig, on_record: OnRecord | None = None) -> LoadRun:
    """Send the requests of `config` and return what was seen of each.

    Args:
        config: what to send; checked here.
        on_record: called with each measured record as it ends, to show progress.

    Raises:
        BadRequest: the configuration, its trace or its tokenizer is unusable.
    """
    config.validate()
    workload = Workload(config)
    specs: Iterable[RequestSpec] = workload.requests()
    if config.duration_s is None:
        specs = list(specs)  # a run with a known end makes its prompts before the clock starts
    run = LoadRun()

    async with Client(config) as client:
        warmed: list[Record] = []
        await _closed_loop(client, workload.warmup(), config.concurrency or 1, None, warmed.append)
        run.warmup_errors = [record.error for record in warmed if record.error]

        def keep(record: Record) -> None:
            run.records.append(record)
            if on_record is not None:
                on_record(record)

        cpu_before_s = _cpu_s()
        client.restart_clock()
        if config.concurrency is not None:
            await _closed_loop(client, specs, config.concurrency, config.duration_s, keep)
        else:
            await _open_loop(client, specs, config.duration_s, keep)
        run.generator_cpu_s = _cpu_s() - cpu_before_s
    run.duration_s = max((record.end_s for record in run.records), default=0.0)
    return run


async def _closed_loop(
    client: Client,
    specs: Iterable[RequestSpec],
    num_workers: int,
    duration_s: float | None,
    keep: OnRecord,
) -> None:
    """Keep `num_workers` requests running until the specs or the time run out."""
    queue = iter(specs)  # shared: whichever worker is free takes the next request

    async def work() -> None:
        for spec in queue:
            keep(await client.send(spec))
            if duration_s is not None and client.now_s() >= duration_s:
                return

    async with asyncio.TaskGroup() as tasks:
        for _ in range(num_workers):
            tasks.create_task(work())


async def _open_loop(
    client: Client, specs: Iterable[RequestSpec], duration_s: float | None, keep: OnRecord
) -> None:
    """Send each request when it is due, however many are still running."""

    async def send(spec: RequestSpec) -> None:
        keep(await client.send(spec))

    async with asyncio.TaskGroup() as tasks:
        for spec in specs:
            assert spec.due_s is not None
            if duration_s is not None and spec.due_s >= duration_s:
                break
            await asyncio.sleep(max(0.0, spec.due_s - client.now_s()))
            tasks.create_task(send(spec))


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system
