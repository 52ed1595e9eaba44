"""Panels as one picture."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import matplotlib
from bench.dashboard.evaluate import History, Labels, evaluate
from bench.dashboard.panels import Panel, Target
from bench.dashboard.promql import parse

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

_COLUMNS = 4
_POINTS = 60
_UNITS = {"s": "s", "reqps": "/s", "percentunit": "%", "bytes": "MiB", "short": ""}
_SCALES = {"percentunit": 100.0, "bytes": 2.0**-20}


def draw(
    panels: Sequence[Panel], history: History, span_s: tuple[float, float], path: Path
) -> None:
    """Draw all panels over a span of time, four in a row, below the headings of their rows.

    Args:
        panels: in the order of the dashboard.
        history: what they are evaluated over.
        span_s: first and last time.
        path: of the picture; its ending says which format.
    """
    rows = [(row, list(found)) for row, found in groupby(panels, lambda panel: panel.row)]
    lines = [math.ceil(len(found) / _COLUMNS) for _, found in rows]
    figure, grid = pyplot.subplots(
        sum(lines), _COLUMNS, figsize=(16, 2.3 * sum(lines)), squeeze=False, layout="constrained"
    )
    for axes in grid.flat:
        axes.axis("off")
    first = 0
    for (row, found), height in zip(rows, lines, strict=True):
        for number, panel in enumerate(found):
            axes = grid[first + number // _COLUMNS, number % _COLUMNS]
            _draw(axes, panel, history, span_s, heading=row if number == 0 else "")
        first += height
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _draw(
    axes: Axes, panel: Panel, history: History, span_s: tuple[float, float], heading: str
) -> None:
    axes.axis("on")
    title = f"{panel.title} {_UNITS[panel.unit] and f'[{_UNITS[panel.unit]}]'}"
    axes.set_title(title, fontsize=8, loc="right")
    axes.text(0, 1.2, heading, transform=axes.transAxes, fontsize=10, fontweight="bold")
    begin, end = span_s
    times = [begin + (end - begin) * i / (_POINTS - 1) for i in range(_POINTS)]
    for target in panel.targets:
        for name, values in _lines(target, history, times).items():
            scaled = [_SCALES.get(panel.unit, 1.0) * value for value in values]
            axes.plot(times, scaled, label=name, linewidth=1)
    highest = max((max(_known(line.get_ydata())) for line in axes.lines), default=0.0)
    axes.set_ylim(0, 1.3 * highest or 1.0)
    axes.set_xlim(begin, end)
    axes.tick_params(labelsize=6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:.0f} s"))
    axes.grid(visible=True, linewidth=0.3)
    if axes.lines:
        axes.legend(fontsize=6, loc="upper left", frameon=False, ncols=2)
    else:
        axes.text(0.5, 0.5, "nothing in this load", ha="center", transform=axes.transAxes, size=7)


def _lines(target: Target, history: History, times: Sequence[float]) -> dict[str, list[float]]:
    """Values by legend, NaN where there are none."""
    tree, found = parse(target.expr), {}
    for number, at_s in enumerate(times):
        shown = evaluate(tree, history, at_s)
        assert isinstance(shown, dict)
        for labels, value in shown.items():
            name = _legend(target.legend, labels)
            found.setdefault(name, [math.nan] * len(times))[number] = value
    return found


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)] or [0.0]


def _legend(legend: str, labels: Labels) -> str:
    return re.sub(r"{{(\w+)}}", lambda name: dict(labels).get(name[1], ""), legend)
