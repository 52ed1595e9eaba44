"""What fusing logits costs: dynamic weights by search against the published grid, and combining.

    python bench/fusion.py --json bench/results/fusion.1-thread.json

One request of three members (large, base, expert) whose logits have a head of likely tokens and a
tail like a language model's; the expert moves the head most. The methods take turns on the same
logits, new ones in every round, and medians count. With one thread the clock is that thread's, so
that waiting for a busy core does not count. Losses are computed in float64 by the paper's formulas.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from turret_kernels.dynamic_weights import dynamic_weights, grid_weights
from turret_kernels.fusion import Fusion, Members, fuse
from turret_kernels.native import set_threads


def make_logits(vocab: int, generator: torch.Generator) -> torch.Tensor:
    """float32 [3, vocab]: large, base, expert."""

    def noise(scale: float) -> torch.Tensor:
        return scale * torch.randn(vocab, generator=generator)

    common = noise(2.5)
    head = torch.randperm(vocab, generator=generator)[:300]
    common[head] += torch.linspace(14, 2, 300)
    large, base = common + noise(0.5), common + noise(0.7)
    expert = base + noise(0.2)
    expert[head] += torch.randn(300, generator=generator)
    return torch.stack([large, base, expert])


def loss_of(logits: torch.Tensor, weight: float) -> float:
    """The objective of dynamic logit fusion (arXiv 2406.15480)."""
    large, base, expert = logits.double()
    log_p, log_q, log_t = (x.log_softmax(-1) for x in (large, base, expert))
    fused = (large + weight * (expert - base)).log_softmax(-1)

    def kl(a: torch.Tensor, b: torch.Tensor) -> float:
        return (a.exp() * (a - b)).sum().item()

    forward, back = kl(fused, log_p) - kl(log_t, log_q), kl(log_p, fused) - kl(log_q, log_t)
    return forward**2 + back**2


def measure(vocab: int, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Medians in milliseconds, mean losses."""
    generator = torch.Generator().manual_seed(vocab)
    cpu = torch.device("cpu")
    dynamic = Members.of([Fusion(rows=(0, 1, 2), limit=2.0)], cpu)
    fixed = Members.of([Fusion(rows=(0, 1, 2), weights=(1.0, -0.7, 0.7))], cpu)
    runs = {
        "search": lambda x: dynamic_weights(x, dynamic),
        "grid": lambda x: grid_weights(x, dynamic),
        "combine": lambda x: fuse(x, fixed),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    losses: dict[str, list[float]] = {"search": [], "grid": []}
    for _ in range(rounds + 1):
        logits = make_logits(vocab, generator)
        for name, run in runs.items():
            start = clock()
            found = run(logits)
            times[name].append(1e3 * (clock() - start))
            if name in losses:
                losses[name].append(loss_of(logits, float(found[2])))
    median = {
        name: statistics.median(found[1:]) for name, found in times.items()
    }  # the first warms
    return {
        "vocab": vocab,
        **{f"{name}_ms": value for name, value in median.items()},
        "speedup": median["grid"] / median["search"],
        **{f"{name}_loss": statistics.mean(found) for name, found in losses.items()},
        "worse": sum(s > g for s, g in zip(losses["search"], losses["grid"], strict=True)),
    }


def main() -> None:
    """Print one line per vocabulary, and JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, nargs="+", default=[32000, 49152, 128256, 262144])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the results to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    set_threads(args.threads)
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    results = []
    with torch.inference_mode():
        for vocab in args.vocab:
            case = measure(vocab, args.rounds, clock)
            results.append(case)
            print(
                f"{vocab}: search {case['search_ms']:.2f} ms, grid {case['grid_ms']:.2f} ms, "
                f"{case['speedup']:.1f}x; loss {case['search_loss']:.2e} against "
                f"{case['grid_loss']:.2e}, worse {case['worse']} times; "
                f"combine {case['combine_ms']:.3f} ms"
            )
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"threads": args.threads, "cases": results}, file, indent=1)


if __name__ == "__main__":
    main()
