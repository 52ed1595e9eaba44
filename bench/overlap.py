"""What the host does in a decode step, part by part, and what overlapping steps cost on a CPU.

    python bench/overlap.py --json bench/results/overlap.json

The demo model, alone or with adapters: rows of three adapters and the base in turn. *Host*: what
a device would do is left out (the decoder behind the embedding, the draw); launches of a GPU's
kernels are not in it. *Steps*: the whole step, in order and overlapped in turn; a CPU gains
nothing, since nothing runs beside the host. *Emulated*: the host's parts beside a device that is a
clock, busy for some milliseconds with each step, which the host waits for where it would wait for a
GPU.

Times are of this thread's CPU, so that others do not count: the best of several runs of the host's
parts, medians of the steps. What is emulated is the median time from step to step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

import turret_adapters
from turret_server.demo import demo_model
from turret_server.engine import core, draw, sampler
from turret_server.engine.device import use_threads
from turret_server.engine.messages import AdapterUse, EngineRequest, Sampling, StepEvents
from turret_server.engine.settings import EngineSettings
from turret_server.models.batch import Batch

MODELS = ("sql", "dates", "order-json", "base")
ROWS = (1, 16, 64)
PARTS = ("schedule", "build", "plan", "launch", "constrain and draw", "read", "update", "send")


class Bench:
    """An engine that is stepped here, and a clock for its parts."""

    def __init__(self, overlap: str) -> None:
        settings = EngineSettings(
            model=str(demo_model(progress=False)), dtype="bfloat16", threads=1, overlap=overlap
        )
        use_threads(settings)
        self._wake, self._encode = threading.Event(), msgspec.msgpack.Encoder().encode
        self.engine = core.Engine(settings, wake=self._wake.set)
        self.seconds: dict[str, float] = defaultdict(float)
        folder, store = Path(turret_adapters.__file__).parent / "demo", self.engine.store
        self._uses: dict[str, tuple[AdapterUse, ...]] = {"base": ()}
        for name in MODELS[:-1]:
            self._uses[name] = (AdapterUse(store.load(folder / name).result().digest),)
        self._numbers = itertools.count()

    def start(self, rows: int, adapted: bool, tokens: int) -> None:
        """Bring requests to where all of them decode."""
        for i in range(rows):
            number = next(self._numbers)
            request = EngineRequest(
                id=f"request-{number:08}",
                prompt=[100 + (17 * number + j) % 900 for j in range(32)],
                adapters=self._uses[MODELS[i % 4] if adapted else "base"],
                sampling=Sampling(temperature=0.7, top_p=0.9, seed=number, max_tokens=tokens),
            )
            assert self.engine.submit(request) is None
        scheduler = self.engine.scheduler
        while len(scheduler.running) < rows or not all(s.num_output > 2 for s in scheduler.running):
            self._wake.clear()
            if not self.engine.step() and not scheduler.running:
                self._wake.wait(timeout=30)

    def step(self) -> float:
        """Seconds of one step, the message included."""
        began = time.thread_time()
        events = self.engine.step()
        encoding = time.thread_time()
        self._encode(StepEvents(events))
        ended = time.thread_time()
        self.seconds["send"] += ended - encoding
        return ended - began

    def finish(self) -> None:
        """Let nobody run."""
        for sequence in list(self.engine.scheduler.running):
            self.engine.cancel(sequence.request.id)
        while not self.engine.idle:
            self.engine.step()

    def leave_the_device_out(self) -> None:
        """Nothing computes; where the host's parts begin and end is noted."""
        engine = self.engine
        runner, vocab = engine._runner, engine.decoder.config.vocab_size
        runner._recorder = _Nothing(vocab)
        runner._graphs.clear()
        sampler.sample = lambda logits, *settings: torch.full((len(logits),), 7)
        self._time(engine.scheduler, "schedule", "schedule")
        self._time(engine._builder, "build", "build")
        self._time(core, "row_uses", "plan")
        self._time(core, "StepPlan", "plan")
        self._time(runner, "forward", "launch")
        self._time(core, "sample_step", "constrain and draw")
        self._time(core.Draw, "results", "read")
        self._time(engine.scheduler, "advance", "update")
        self._time(engine.scheduler, "update", "update")

    def emulate(self, milliseconds: float) -> None:
        """Let each step keep a device busy."""
        free = 0.0  # when the device has done all that it was told
        forward = self.engine._runner.forward

        def launch(batch: Batch) -> Tensor:
            nonlocal free
            logits = forward(batch)
            free = max(free, time.perf_counter()) + milliseconds / 1e3
            return logits

        class Copies(draw.HostCopies):
            def close(self) -> None:
                self.done = free

            def wait(self) -> None:
                while (left := self.done - time.perf_counter()) > 0:
                    time.sleep(max(0.0, left - 2e-4))

        self.engine._runner.forward = launch
        sampler.HostCopies = Copies

    def _time(self, owner: Any, name: str, part: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += time.thread_time() - began

        setattr(owner, name, timed)


class _Nothing:
    """Records graphs in which nothing happens."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab

    def record(self, prepare: Callable[[], None], run: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        prepare()
        rows = torch.empty(64, self._vocab)
        return self, rows

    def replay(self) -> None:
        pass


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {"steps_ms": _steps(), "host_us": _host(), "emulated_ms": _emulated()}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def _steps(rounds: int = 6, steps: int = 4) -> list[dict[str, Any]]:
    """In order and overlapped, turn about."""
    benches, found = {name: Bench(name) for name in ("off", "on")}, []
    for rows in ROWS:
        times: dict[str, list[float]] = {name: [] for name in benches}
        for bench in benches.values():
            bench.start(rows, adapted=True, tokens=1000)
        for _ in range(rounds):
            for name, bench in benches.items():
                times[name] += [bench.step() for _ in range(steps)]
        for bench in benches.values():
            bench.finish()
        row = {"rows": rows}
        row |= {name: round(1e3 * statistics.median(each), 3) for name, each in times.items()}
        print(row)
        found.append(row)
    for bench in benches.values():
        bench.engine.close()
    return found


def _host(rounds: int = 12, steps: int = 40) -> list[dict[str, Any]]:
    """Microseconds of the parts of a step."""
    bench, found = Bench("on"), []
    bench.leave_the_device_out()
    for adapted, rows in itertools.product((False, True), ROWS):
        best: dict[str, float] = {}
        bench.start(rows, adapted, tokens=1 << 20)
        for _ in range(rounds):
            bench.seconds.clear()
            total = sum(bench.step() for _ in range(steps)) / steps
            parts = {part: bench.seconds[part] / steps for part in PARTS} | {"total": total}
            best = {part: min(best.get(part, 1.0), took) for part, took in parts.items()}
        bench.finish()
        row = {"rows": rows, "adapters": min(rows, 3) if adapted else 0}
        row |= {part: round(1e6 * took, 1) for part, took in best.items()}
        print(row)
        found.append(row)
    bench.engine.close()
    return found


def _emulated(device_ms: float = 5.4, steps: int = 120) -> list[dict[str, Any]]:
    """Milliseconds from step to step beside a device that takes so many."""
    found = []
    for rows in ROWS:
        row = {"rows": rows, "device": device_ms}
        for overlap in ("off", "on"):
            bench = Bench(overlap)
            bench.leave_the_device_out()
            bench.start(rows, adapted=True, tokens=1 << 20)
            bench.emulate(device_ms)
            began, times = time.perf_counter(), []
            for _ in range(steps):
                bench.step()
                ended = time.perf_counter()
                times.append(1e3 * (ended - began))
                began = ended
            row[overlap] = round(statistics.median(times), 3)
            bench.finish()
            bench.engine.close()
        print(row)
        found.append(row)
    return found


if __name__ == "__main__":
    main()
