"""What compression costs the demo adapters at their own tasks: bytes, drift, right answers.

    python bench/compression.py --output bench/results/compression.json

Every adapter is compressed at several densities. Alpha is "auto", and tuned as the paper does: the
best of a few on examples from the training distribution that training did not see. Then the
adapters and their compressed forms answer the published test examples greedily, in bf16, as
requests of one engine in this process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import turret_adapters
from turret_adapters.compress.compeft import compress
from turret_server.demo import demo_model
from turret_server.engine.core import Engine
from turret_server.engine.messages import AdapterUse, EngineRequest, Sampling
from turret_server.engine.settings import EngineSettings
from turret_server.loadtest.environment import describe_environment
from turret_server.pipeline.prompt import ChatPrompt
from turret_server.pipeline.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))  # scripts there import each other by bare names
from demo_tasks import Example, Task, all_tasks  # noqa: E402

DEMO = Path(turret_adapters.__file__).parent / "demo"
NAMES = ["order-json", "sql", "dates"]
DENSITIES = [0.05, 0.1, 0.2, 0.3, 0.5]
FACTORS = [0.8, 1.25]  # of the automatic alpha, tried beside it
TUNE_COUNT, TUNE_SEED = 50, 3
TEST_COUNT, TEST_SEED = 200, 2  # as published in examples/demo_scores.json


class Examiner:
    """An engine with the demo model, and questions for it."""

    def __init__(self) -> None:
        folder = demo_model(progress=False)
        self._wake = threading.Event()
        settings = EngineSettings(
            model=str(folder), dtype="bfloat16", max_model_len=1024, max_resident_adapters=16
        )
        self._engine = Engine(settings, wake=self._wake.set)
        self._tokenizer = Tokenizer.load(folder)
        self._prompt = ChatPrompt(self._tokenizer)

    def share_right(self, adapter: Path, task: Task, examples: Sequence[Example]) -> float:
        """How many of the examples an adapter answers right."""
        loaded = self._engine.store.load(adapter).result()
        answers: dict[str, list[int]] = {}
        for number, example in enumerate(examples):
            request = EngineRequest(
                id=str(number),
                prompt=self._prompt.render([{"role": "user", "content": example.prompt}]),
                sampling=Sampling(
                    temperature=0.0,
                    max_tokens=task.max_new_tokens,
                    stop_token_ids=tuple(self._tokenizer.eos_token_ids),
                ),
                adapters=(AdapterUse(loaded.digest),),
            )
            answers[request.id] = []
            assert self._engine.submit(request) is None
        while not self._engine.idle:
            self._wake.clear()
            events = self._engine.step()
            if not events and not self._engine.scheduler.running:
                self._wake.wait(timeout=30)
            for event in events:
                answers[event.id] += event.tokens
        self._engine.store.forget(loaded.digest)
        texts = [self._tokenizer.decode(tokens) for tokens in answers.values()]
        return sum(map(task.score, texts, examples)) / len(examples)

    def close(self) -> None:
        """Stop the loader's thread."""
        self._engine.store.close()


def measure(examiner: Examiner, name: str, folder: Path) -> dict[str, Any]:
    """All densities of one adapter, and the adapter itself."""
    task = all_tasks()[name]
    test = task.examples("test", TEST_COUNT, TEST_SEED)
    rows = []
    for density in DENSITIES:
        rows.append(measure_density(examiner, task, test, folder / f"{density}", density))
        print(name, rows[-1], flush=True)
    return {"right": examiner.share_right(DEMO / name, task, test), "densities": rows}


def measure_density(
    examiner: Examiner, task: Task, test: Sequence[Example], folder: Path, density: float
) -> dict[str, Any]:
    """One row of the table."""
    source, tune = DEMO / task.name, task.examples("train", TUNE_COUNT, TUNE_SEED)
    automatic = compress(source, folder / "1.0", density=density)
    made = {1.0: automatic}
    for factor in FACTORS:
        alpha = factor * automatic.alpha
        made[factor] = compress(source, folder / f"{factor}", density=density, alpha=alpha)
    tuned = {f: examiner.share_right(folder / f"{f}", task, tune) for f in made}
    best = max(made, key=lambda f: (tuned[f], f == 1))
    right = {f: examiner.share_right(folder / f"{f}", task, test) for f in {1.0, best}}
    return {
        "density": density,
        "ratio": round(automatic.ratio, 1),
        "bits_per_parameter": round(automatic.bits_per_parameter, 2),
        "alpha": round(automatic.alpha, 2),
        "drift": round(statistics.mean(automatic.drift.values()), 2),
        "right": right[1.0],
        "tuned_alpha": round(made[best].alpha, 2),
        "tuned_right": right[best],
    }


def table(found: dict[str, Any]) -> str:
    """The numbers in Markdown."""
    lines = [
        "| adapter | density | times smaller | bits a value | drift | right | right, alpha tuned |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in found.items():
        lines.append(f"| `{name}` | as trained | 1 | 16 | 0 | {result['right']:.1%} | |")
        lines += [
            f"| | {row['density']:.0%} | {row['ratio']} | {row['bits_per_parameter']} "
            f"| {row['drift']:.0%} | {row['right']:.1%} | {row['tuned_right']:.1%} |"
            for row in result["densities"]
        ]
    return "\n".join(lines)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--output", type=Path, help="write the numbers as JSON")
    args = parser.parse_args()
    examiner = Examiner()
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = {n: measure(examiner, n, Path(folder) / n) for n in args.only}
    finally:
        examiner.close()
    print(table(found))
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**describe_environment(), "adapters": found}, indent=1)
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
