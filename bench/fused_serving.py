"""What a fused request costs beside as many ordinary rows, in decode steps of the engine.

    python bench/fused_serving.py --json bench/results/fused_serving.json

The demo model in bf16 with its adapters. A fused request has as many members as an ordinary batch
has requests, of the same models with prompts of the same length; both decode the same number of
tokens, turn about, and medians of their steps count. With one thread the clock is that thread's, so
that waiting for a busy core does not count.

With auxiliary models (the demo model again, twice) a step runs every model; it is measured beside
a step of one row, of which it should take as many as there are models.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

import turret_adapters
from turret_server.demo import demo_model
from turret_server.engine.core import Engine
from turret_server.engine.device import use_threads
from turret_server.engine.messages import AdapterUse, EngineRequest, Fusion, Member, Sampling
from turret_server.engine.settings import EngineSettings

MODELS = ("base", "sql", "dates", "order-json")
AUXILIARIES = ("small", "tuned")
PROMPT_TOKENS = 64


class Bench:
    """An engine that is stepped here.

    Args:
        threads: of the CPU.
    """

    def __init__(self, threads: int) -> None:
        model = str(demo_model(progress=False))
        settings = EngineSettings(
            model=model,
            dtype="bfloat16",
            threads=threads,
            auxiliaries=dict.fromkeys(AUXILIARIES, model),
        )
        use_threads(settings)
        self._wake = threading.Event()
        self._engine = Engine(settings, wake=self._wake.set)
        self._clock: Callable[[], float] = time.thread_time if threads == 1 else time.perf_counter
        folder, store = Path(turret_adapters.__file__).parent / "demo", self._engine.store
        self._uses: dict[str, tuple[AdapterUse, ...]] = {"base": ()}
        for name in MODELS[1:]:
            self._uses[name] = (AdapterUse(store.load(folder / name).result().digest),)

    def steps(self, requests: list[EngineRequest]) -> list[float]:
        """Milliseconds of the decode steps that all requests took part in."""
        engine, found = self._engine, []
        for request in requests:
            engine.submit(request)
        while not engine.idle:
            leads = [s for s in engine.scheduler.running if s.num_output > 1]
            started = self._clock()
            events = engine.step()
            took = 1e3 * (self._clock() - started)
            if len(leads) == len(requests) and not any(e.finish_reason for e in events):
                found.append(took)
            if not events and not engine.scheduler.running:
                self._wake.wait(timeout=30)
        return found

    def ordinary(self, members: int, tokens: int) -> list[EngineRequest]:
        """One request per member."""
        return [
            EngineRequest(
                id=str(i),
                prompt=_prompt(i),
                adapters=self._uses[MODELS[i % len(MODELS)]],
                sampling=Sampling(temperature=0, max_tokens=tokens),
            )
            for i in range(members)
        ]

    def fused(self, members: int, tokens: int, **fields: Any) -> list[EngineRequest]:
        """The same rows, as one request."""
        first, *others = self.ordinary(members, tokens)
        fusion = Fusion(
            members=tuple(Member(prompt=r.prompt, adapters=r.adapters) for r in others),
            terms=tuple(range(members)),
            **{"weights": (1.0,) * members, **fields},
        )
        return [msgspec.structs.replace(first, fusion=fusion)]

    def beside_auxiliaries(self, tokens: int) -> list[EngineRequest]:
        """The base and both auxiliaries: proxy-tuning."""
        (first,) = self.ordinary(1, tokens)
        members = tuple(Member(prompt=_prompt(0), model=name) for name in AUXILIARIES)
        fusion = Fusion(members=members, terms=(0, 1, 2), weights=(1.0, -1.0, 1.0))
        return [msgspec.structs.replace(first, fusion=fusion)]


def _prompt(number: int) -> list[int]:
    return [100 + (17 * number + i) % 900 for i in range(PROMPT_TOKENS)]


def measure(bench: Bench, members: int, rounds: int, tokens: int) -> dict[str, Any]:
    """A fused request of so many members beside as many rows."""
    ways = {
        "rows": bench.ordinary(members, tokens),
        "sum": bench.fused(members, tokens),
        "mixture": bench.fused(members, tokens, mixture=True),
        "contrastive": bench.fused(members, tokens, plausible=0.1),
        "nucleus": bench.fused(members, tokens, nucleus=0.9),
    }
    if members > 2:
        ways["dynamic"] = bench.fused(members, tokens, limit=2.0)
        ways["grid"] = bench.fused(members, tokens, limit=2.0, grid=True)
    return {"members": members, **compare(bench, ways, rounds)}


def compare(
    bench: Bench, ways: dict[str, list[EngineRequest]], rounds: int
) -> dict[str, dict[str, float]]:
    """Medians in milliseconds, and what they are of the median of "rows"."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(rounds + 1):
        for name, requests in ways.items():
            found = bench.steps(requests)
            times[name] += found if round_number else []  # the first warms
    median = {name: statistics.median(found) for name, found in times.items()}
    return {
        "step_ms": {name: round(value, 3) for name, value in median.items()},
        "to_rows": {name: round(value / median["rows"], 3) for name, value in median.items()},
    }


def main() -> None:
    """Print one line per number of members, and JSON with --json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--members", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    bench, results = Bench(args.threads), []
    for members in args.members:
        results.append(case := measure(bench, members, args.rounds, args.tokens))
        print(f"{members} rows: {case['step_ms']['rows']} ms a step; {case['to_rows']}", flush=True)
    ways = {
        "rows": bench.ordinary(1, args.tokens),
        "auxiliaries": bench.beside_auxiliaries(args.tokens),
    }
    beside = compare(bench, ways, args.rounds)
    print(f"1 row: {beside['step_ms']['rows']} ms; two auxiliaries: {beside['to_rows']}")
    if args.json is not None:
        found = {"threads": args.threads, "cases": results, "auxiliaries": beside}
        text = json.dumps(found, indent=1)
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
