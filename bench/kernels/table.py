"""The cases of all ops, and lines about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.kernels.case import Case
from bench.kernels.limits import CARDS

_FRAME = {"__main__", "case", "limits", "operands", "peers", "table", "timing"}
OPS = sorted({path.stem for path in Path(__file__).parent.glob("*.py")} - _FRAME)

_HEAD = """Predicted us = launches x {launch} + max(bytes / bandwidth, flop / peak) / share + what
is read again / L2 bandwidth. Bandwidths and peaks (a large copy's, a large product's):
{cards}
"""


def cases(op: str, tiny: bool = False) -> Iterator[Case]:
    """Of one op: those that are measured, or those of the tests."""
    module = import_module(f"bench.kernels.{op}")
    for size in module.TINY if tiny else module.SIZES:
        yield module.case(*size)


def predictions(ops: Sequence[str]) -> str:
    """A table of what we expect of every case, and why."""
    cards = "\n".join(
        f"  {name}: {limits.bytes_per_us / 1e6:.2f} TB/s, L2 {limits.l2_bytes_per_us / 1e6:.1f},"
        f" {limits.flop_per_us / 1e6:.0f} TFLOP/s"
        for name, limits in CARDS.items()
    )
    launch = next(iter(CARDS.values())).launch_us
    columns = ["op", "case", "MB", "bytes", "Mflop", "launches", "share", *CARDS]
    lines = [_line(columns), _line(["---"] * len(columns))]
    for op in ops:
        for case in cases(op):
            times = [f"{limits.predicted_us(case):.1f}" for limits in CARDS.values()]
            sizes = [f"{case.bytes / 1e6:.3g}", case.arithmetic, f"{case.flop / 1e6:.3g}"]
            cells = [op, case.name, *sizes, str(case.launches), f"{case.share:.2f}", *times]
            lines.append(_line(cells))
    return "\n".join([_HEAD.format(launch=launch, cards=cards), *lines, ""])


def measured_row(row: dict[str, Any]) -> str:
    """One line of a measurement: time, roofline fraction, and how many times as long peers take."""
    ours = row["times"]["turret"]["us"]
    peers = [
        f"{name} {time['us']:.1f} ({time['us'] / ours:.2f}x)" if "us" in time else f"{name} failed"
        for name, time in row["times"].items()
        if name != "turret"
    ]
    return (
        f"{row['op']:16} {row['case']:40} {ours:8.1f} us, predicted {row['predicted_us']:8.1f},"
        f" floor {row['floor_us']:8.2f} ({row['floor_us'] / ours:4.0%}); {', '.join(peers)}"
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
