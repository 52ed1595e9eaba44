"""Plots of several results, as SVG and PNG. Needs matplotlib: the `plot` extra."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turret_server.errors import StartupError
from turret_server.loadtest.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_CURVES = (("ttft_ms", "time to first token"), ("itl_ms", "inter-token"), ("e2e_ms", "end to end"))


def draw(results: Sequence[Result]) -> dict[str, Figure]:
    """Return the figures of a comparison by name: throughput, latency, timeline, models.

    A figure with nothing to show is left out: `models` needs a result with several models,
    `timeline` a streamed one.

    Raises:
        StartupError: matplotlib is not installed.
    """
    figures = {"throughput": _throughput(results), "latency": _latency(results)}
    if any(result["summary"]["output_tokens_timeline"] for result in results):
        figures["timeline"] = _timeline(results)
    if any(len(result["summary"]["models"]) > 1 for result in results):
        figures["models"] = _models(results)
    return figures


def to_svg(figure: Figure, salt: str) -> str:
    """Return a figure as an `<svg>` element: text stays text, the same figure gives same bytes.

    Args:
        figure: what to render.
        salt: makes element ids of this figure differ from another's on the same page.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def save_plots(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """Write each figure as SVG and PNG; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        svg, png = folder / f"{name}.svg", folder / f"{name}.png"
        svg.write_text('<?xml version="1.0" encoding="utf-8"?>\n' + to_svg(figure, name), "utf-8")
        figure.savefig(png, dpi=150)
        paths += [svg, png]
    return paths


def _throughput(results: Sequence[Result]) -> Figure:
    figure, (axes,) = _figure(1, height=1.2 + 0.45 * len(results))
    values = [result["summary"]["output_tokens_per_s"] for result in results]
    rows = range(len(results))
    bars = axes.barh(rows, values, color=[_colour(i) for i in rows])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_yticks(rows, [_literal(result["label"]) for result in results])
    axes.invert_yaxis()
    axes.set_xlabel("output tokens per second")
    axes.margins(x=0.12)
    return figure


def _latency(results: Sequence[Result]) -> Figure:
    figure, panels = _figure(len(_CURVES), height=3.8)
    for axes, (metric, title) in zip(panels, _CURVES, strict=True):
        for index, result in enumerate(results):
            if points := result["summary"]["quantiles"][metric]:
                axes.plot(points, range(len(points)), **_line(index, result))
        axes.set_title(title)
        axes.set_xlabel("milliseconds")
        axes.set_xlim(left=0)
    panels[0].set_ylabel("percentile")
    _legend(panels[-1])
    return figure


def _timeline(results: Sequence[Result]) -> Figure:
    figure, (axes,) = _figure(1, height=3.4)
    for index, result in enumerate(results):
        counts = result["summary"]["output_tokens_timeline"]
        axes.plot(range(len(counts)), counts, drawstyle="steps-post", **_line(index, result))
    axes.set_xlabel("seconds from the start")
    axes.set_ylabel("output events per second")
    axes.set_ylim(bottom=0)
    _legend(axes)
    return figure


def _models(results: Sequence[Result]) -> Figure:
    figure, panels = _figure(2, height=3.8)
    for axes, (metric, title) in zip(
        panels, (("ttft_ms", "time to first token"), ("itl_ms", "inter-token")), strict=True
    ):
        for index, result in enumerate(results):
            groups = list(result["summary"]["models"].values())
            p99 = [group[metric]["p99"] for group in groups if group[metric]["count"]]
            style: dict[str, Any] = {**_line(index, result), "marker": "o", "linestyle": ""}
            axes.plot(range(1, len(p99) + 1), p99, **style)
        axes.set_title(f"{title}, p99 of each model")
        axes.set_xlabel("model, in order of name")
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("milliseconds")
    _legend(panels[-1])
    return figure


def _figure(num_panels: int, *, height: float) -> tuple[Figure, Sequence[Axes]]:
    figure_class = _figure_class()
    figure = figure_class(figsize=(9.5, height), layout="constrained")
    panels = figure.subplots(1, num_panels, squeeze=False)[0]
    for axes in panels:
        axes.set_axisbelow(True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _figure_class() -> Callable[..., Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise StartupError(
            "Plots not drawn",
            "matplotlib is not installed",
            "Install the plot extra: pip install 'turret[plot]'",
        ) from error
    return Figure


def _line(index: int, result: Result) -> dict[str, Any]:
    return {"color": _colour(index), "label": _literal(result["label"])}


def _literal(label: str) -> str:
    """Keep matplotlib from reading `$` as mathematics and a leading `_` as "no legend"."""
    return label.replace("$", r"\$").lstrip("_") or "-"


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")
