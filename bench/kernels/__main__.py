"""Times of GPU kernels, beside what memory and arithmetic allow, what was predicted, and peers.

    python -m bench.kernels --op low_rank --output bench/results/kernels.json

Every file here is an op with a function `cases`. A case is one piece of work on many sets of
operands, together larger than the L2 cache: in a server too, an adapter's rows come from memory.
All sets are recorded in one CUDA graph; the time is the median of its replays, by call. So it has
the gaps between kernels in it, and not Python.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import torch
from bench.kernels.case import Case

_REPLAYS = 30


def time_us(calls: list[Callable[[], object]]) -> tuple[float, float]:
    """Median microseconds of a call, and the spread: half the distance of the quartiles."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls[:2]:  # compiles
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(_REPLAYS + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * start.elapsed_time(end) / len(calls))
    first, median, third = statistics.quantiles(times[3:], n=4)
    return median, (third - first) / 2


def ceilings() -> dict[str, float]:
    """What this device reaches: bytes and products per microsecond, microseconds of no work."""
    source = torch.randn(1 << 28, device="cuda")
    target, small = torch.empty_like(source), torch.zeros(1, device="cuda")
    a, b = torch.randn(2, 8192, 8192, device="cuda").bfloat16()
    return {
        "bytes_per_us": 2 * source.nbytes / time_us([lambda: target.copy_(source)])[0],
        "flop_per_us": 2 * 8192**3 / time_us([lambda: a @ b])[0],
        "launch_us": time_us([lambda: small.add_(1)] * 200)[0],
    }


def measure(case: Case, limits: dict[str, float]) -> dict[str, object]:
    """One row of results."""
    floor = max(case.bytes / limits["bytes_per_us"], case.flop / limits["flop_per_us"])
    times = {}
    for name, calls in case.calls.items():
        median, spread = time_us(calls)
        times[name] = {"us": median, "spread_us": spread}
    return {
        "case": case.name,
        "bytes": case.bytes,
        "floor_us": floor,
        "predicted_us": case.launches * limits["launch_us"] + floor / case.share,
        "of_floor": floor / times["turret"]["us"],
        **times,
    }


def rows(ops: list[str], limits: dict[str, float]) -> Iterator[dict[str, object]]:
    """Measure all cases, one after another: their operands together would not fit."""
    for op in ops:
        for case in import_module(f"bench.kernels.{op}").cases("cuda"):
            yield {"op": op, **measure(case, limits)}


def main() -> None:
    """Print a line per case; JSON with --output."""
    parser = argparse.ArgumentParser(description=__doc__)
    found = {path.stem for path in Path(__file__).parent.glob("*.py")} - {"__main__", "case"}
    parser.add_argument("--op", nargs="+", choices=sorted(found), default=sorted(found))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench.kernels times GPU kernels, and torch finds no GPU here")
    torch.manual_seed(0)
    limits, results = ceilings(), []
    print({name: round(value, 2) for name, value in limits.items()})
    for row in rows(args.op, limits):
        results.append(row)
        print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}))
    if args.output:
        device = torch.cuda.get_device_name()
        versions = {"torch": torch.__version__, "triton": import_module("triton").__version__}
        found_here = {"device": device, "versions": versions, "ceilings": limits, "rows": results}
        args.output.write_text(json.dumps(found_here, indent=1) + "\n")


main()
