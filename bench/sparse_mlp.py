"""What skipping dead neurons is worth: one MLP behind a threshold, sparse against dense.

    python bench/sparse_mlp.py --hidden 2048 --inner 8192

Both read several layers in turn, more than a cache holds, and take turns call by call, so that
other work on the machine meets both alike; of every layer's times the best counts. With one thread
the clock is that thread's, so that waiting for a busy core does not count. Thresholds are exact
quantiles of |SiLU(gate)| of the rows measured, so the share of dead neurons is exact per row; rows
are independent, the worst case for a batch, whose live neurons then hardly overlap.
"""

from __future__ import annotations

import argparse
import json
import os
import time

import torch

from turret_kernels.activation import act_mul
from turret_kernels.entries import Entries
from turret_kernels.linear import linear, pack_linear, slice_linear
from turret_kernels.native import TILES, lib, set_threads
from turret_kernels.sparse_mlp import MlpWeights, pack_neurons, sparse_mlp


def make_layer(hidden: int, inner: int) -> tuple[MlpWeights, torch.Tensor]:
    """Random weights, packed both ways."""
    gate_up = (torch.randn(2 * inner, hidden) / hidden**0.5).bfloat16()
    down = (torch.randn(hidden, inner) / inner**0.5).bfloat16()
    neurons = pack_neurons(gate_up[inner:], down)
    assert neurons is not None, "no CPU kernels here"
    return MlpWeights(pack_linear(gate_up), None, pack_linear(down), None, "silu"), neurons


def dense_mlp(x: torch.Tensor, weights: MlpWeights) -> torch.Tensor:
    """What the decoder runs without adapters."""
    return linear(act_mul(linear(x, weights.gate_up), "silu"), weights.down)


def thresholds_of(x: torch.Tensor, weights: MlpWeights, share: float) -> torch.Tensor:
    """float32 [rows]: below it lie `share` of |SiLU(gate)|."""
    inner = weights.down.in_features
    act = torch.nn.functional.silu(linear(x, slice_linear(weights.gate_up, 0, inner))).abs()
    return (
        act.float().kthvalue(round(share * inner), dim=1).values
        if share
        else x.new_full((len(x),), -1.0, dtype=torch.float32)
    )


def measure(
    layers: list[tuple[MlpWeights, torch.Tensor]],
    rows: int,
    share: float,
    rounds: int,
    dense_above: float | None,
    threads: int,
) -> dict[str, float]:
    """Best times of both paths in milliseconds."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    hidden = layers[0][0].down.out_features
    x = torch.randn(rows, hidden).bfloat16()
    each = torch.arange(rows, dtype=torch.int32)
    entries = Entries(each, torch.ones(rows), each, torch.ones(rows, dtype=torch.int32))
    tables = [thresholds_of(x, weights, share) for weights, _ in layers]
    live = []
    for (weights, neurons), table in zip(layers, tables, strict=True):
        _, product = sparse_mlp(x, weights, neurons, table, entries, dense_above)
        live.append(float((product != 0).any(0).float().mean()))
    best = {"dense": [1e9] * len(layers), "sparse": [1e9] * len(layers)}
    for _ in range(rounds):
        for i in range(len(layers)):
            # Not the layer that was just read densely: its gate would lie in the cache.
            j = (i + len(layers) // 2) % len(layers)
            start = clock()
            dense_mlp(x, layers[i][0])
            middle = clock()
            sparse_mlp(x, *layers[j], tables[j], entries, dense_above)
            end = clock()
            best["dense"][i] = min(best["dense"][i], middle - start)
            best["sparse"][j] = min(best["sparse"][j], end - middle)
    dense, sparse = (1e3 * sum(best[name]) / len(layers) for name in ("dense", "sparse"))
    return {
        "rows": rows,
        "sparsity": share,
        "live": sum(live) / len(live),
        "dense_ms": dense,
        "sparse_ms": sparse,
        "speedup": dense / sparse,
    }


def main() -> None:
    """Print one line per case, and JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--inner", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=6, help="read in turn")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.0, 0.5, 0.7, 0.9])
    parser.add_argument("--dense-above", type=float, help="default: as served")
    parser.add_argument("--json", help="write the results to this file")
    args = parser.parse_args()
    assert lib is not None, "no CPU kernels here"
    torch.manual_seed(0)
    set_threads(args.threads)
    layers = [make_layer(args.hidden, args.inner) for _ in range(args.layers)]
    results = []
    with torch.inference_mode():
        for rows in args.rows:
            for share in args.sparsity:
                case = measure(layers, rows, share, args.rounds, args.dense_above, args.threads)
                results.append(case)
                print(
                    f"{rows} rows, {share:.0%} dead, {case['live']:.0%} read: "
                    f"dense {case['dense_ms']:.3f} ms, sparse {case['sparse_ms']:.3f} ms, "
                    f"{case['speedup']:.2f}x",
                    flush=True,
                )
    if args.json:
        setting = {k: v for k, v in vars(args).items() if k != "json"} | {"tiles": bool(TILES)}
        with open(args.json, "w") as file:
            json.dump({"setting": setting, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
