"""Times on the GPU that is there."""

from __future__ import annotations

import statistics

import torch
from bench.kernels.case import Calls, Case
from bench.kernels.limits import Limits

_REPLAYS = 30
# Of all sets of operands together, which no L2 holds; but not more sets than this.
_BYTES = 200 << 20
_SETS = 512


def time_us(calls: Calls) -> tuple[float, float]:
    """Median microseconds of a call, and the spread: half the distance of the quartiles."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # for the operands
    with torch.cuda.stream(stream):
        for call in calls:  # compiles, and makes the tables of tiles, once in a step
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):  # what a peer keeps by stream is there
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


def ceilings() -> Limits:
    """What this device reaches."""
    source = torch.randn(1 << 28, device="cuda")
    target, small = torch.empty_like(source), torch.zeros(1, device="cuda")
    a, b = torch.randn(2, 8192, 8192, device="cuda").bfloat16()
    cached, copied = source[: 1 << 21], target[: 1 << 21]  # 8 MB
    copies = [lambda: copied.copy_(cached)] * 50
    return Limits(
        bytes_per_us=2 * source.nbytes / time_us([lambda: target.copy_(source)])[0],
        l2_bytes_per_us=2 * cached.nbytes / time_us(copies)[0],
        flop_per_us=2 * 8192**3 / time_us([lambda: a @ b])[0],
        launch_us=time_us([lambda: small.add_(1)] * 200)[0],
    )


def measure(case: Case, limits: Limits) -> dict[str, object]:
    """One row of results; a peer that fails has its error in the place of a time."""
    times: dict[str, dict[str, object]] = {}
    sets = max(1, min(_SETS, -(-_BYTES // case.bytes)))
    for name, calls in case.make("cuda", sets).items():
        try:
            median, spread = time_us(calls)
        except Exception as error:  # a peer's, which its row of the table shows; ours is raised
            if name == "turret":
                raise
            torch.cuda.synchronize()
            times[name] = {"error": f"{type(error).__name__}: {error}"[:200]}
        else:
            times[name] = {"us": median, "spread_us": spread}
    return {
        "case": case.name,
        "bytes": case.bytes,
        "floor_us": limits.floor_us(case),
        "predicted_us": limits.predicted_us(case),
        "times": times,
    }
