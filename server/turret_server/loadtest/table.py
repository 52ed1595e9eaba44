"""Rich tables of one result and of several, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from turret_server.loadtest.result import Result

_DISTRIBUTION = ("mean", "p50", "p90", "p95", "p99", "max")
_TITLES = {
    "ttft_ms": "TTFT ms",
    "itl_ms": "ITL ms",
    "tpot_ms": "TPOT ms",
    "e2e_ms": "E2E ms",
}


def result_tables(result: Result) -> list[Table]:
    """Return the tables of one result: totals, latencies, and a row per model and tenant."""
    summary = result["summary"]
    totals = Table(title=escape(result["label"]), show_header=False)
    for name, value in _totals(summary):
        totals.add_row(name, value)
    latencies = Table("latency", *_DISTRIBUTION)
    for metric, title in _TITLES.items():
        latencies.add_row(title, *(_number(summary[metric][name]) for name in _DISTRIBUTION))
    tables = [totals, latencies]
    for title, groups in (("model", summary["models"]), ("tenant", summary["tenants"])):
        if len(groups) > 1:
            tables.append(_group_table(title, groups))
    return tables


def comparison_rows(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the comparison; ratios are against the first result."""
    header = [
        "result", "out tok/s", "ratio", "total tok/s", "req/s", "TTFT p50", "TTFT p99",
        "ITL p50", "ITL p99", "TPOT p50", "E2E p50", "E2E p99", "goodput", "errors",
        "Jain models", "Jain tenants",
    ]  # fmt: skip
    base = results[0]["summary"]["output_tokens_per_s"]
    rows = []
    for result in results:
        summary = result["summary"]
        speed = summary["output_tokens_per_s"]
        goodput = summary["goodput"]
        fairness = summary["fairness"]
        rows.append(
            [
                result["label"],
                _number(speed),
                f"{speed / base:.2f}" if base else "-",
                _number(summary["total_tokens_per_s"]),
                _number(summary["requests_per_s"]),
                *(_number(summary["ttft_ms"][p]) for p in ("p50", "p99")),
                *(_number(summary["itl_ms"][p]) for p in ("p50", "p99")),
                _number(summary["tpot_ms"]["p50"]),
                *(_number(summary["e2e_ms"][p]) for p in ("p50", "p99")),
                "-" if goodput is None else f"{goodput['fraction']:.1%}",
                str(sum(summary["errors"].values())),
                _number(fairness["models"]["speed"]),
                _number(fairness["tenants"]["speed"]),
            ]
        )
    return header, rows


def comparison_table(results: Sequence[Result]) -> Table:
    """Return the comparison for a terminal: a column per result, since lines are short there."""
    header, rows = comparison_rows(results)
    table = Table(title="latencies in ms, ratio against the first")
    for index, cells in enumerate(zip(header, *rows, strict=True)):
        words = [escape(cell) for cell in cells]
        if index == 0:
            table.add_column("")
            for label in words[1:]:
                table.add_column(label, justify="right", overflow="fold")
        else:
            table.add_row(*words)
    return table


def differences(results: Sequence[Result]) -> list[str]:
    """Name what should be equal between results but is not, one sentence each.

    A comparison over different loads or machines is allowed, and says so.
    """
    found = []
    for title, values in (
        ("machine", [_stable_machine(result) for result in results]),
        ("config", [result["config"] for result in results]),
    ):
        for key in sorted(set().union(*values)):
            if title == "config" and key in ("models", "model_bodies"):
                continue  # names differ between servers by nature; their number is checked below
            seen = [value.get(key) for value in values]
            if any(value != seen[0] for value in seen):
                shown = ", ".join(dict.fromkeys(repr(value) for value in seen))
                found.append(f"{title} {key!r} differs: {shown}")
    counts = [len(result["config"]["models"]) for result in results]
    if len(set(counts)) > 1:
        found.append(f"number of models differs: {', '.join(map(str, counts))}")
    return found


def _totals(summary: dict[str, Any]) -> list[tuple[str, str]]:
    goodput = summary["goodput"]
    fairness = summary["fairness"]
    generator = summary["generator"]
    rows = [
        ("duration", f"{summary['duration_s']:.2f} s"),
        ("requests", f"{summary['completed']} of {summary['requests']} completed"),
        ("output tokens/s", _number(summary["output_tokens_per_s"])),
        ("total tokens/s", _number(summary["total_tokens_per_s"])),
        ("requests/s", _number(summary["requests_per_s"])),
    ]
    if summary["errors"]:
        rows.append(
            ("errors", escape(", ".join(f"{k}: {n}" for k, n in summary["errors"].items())))
        )
    if goodput is not None:
        objectives = " ".join(goodput["objectives"])
        rows.append((f"goodput ({objectives})", f"{goodput['fraction']:.1%}"))
    for name in ("models", "tenants"):
        if len(summary[name]) > 1:
            index = fairness[name]
            value = f"{_number(index['speed'])} by speed, {_number(index['throughput'])} by tokens"
            rows.append((f"Jain index, {name}", value))
    lag = _number(generator["max_send_lag_ms"])
    rows.append(("generator", f"{generator['cpu_share']:.1%} of a core, lag up to {lag} ms"))
    return rows


def _group_table(title: str, groups: dict[str, Any]) -> Table:
    table = Table(title, "n", "errors", "out tok/s", "TTFT p50/99", "ITL p50/99", "E2E p50/99")
    for name, group in groups.items():
        table.add_row(
            escape(name),
            str(group["requests"]),
            str(sum(group["errors"].values())),
            _number(group["output_tokens_per_s"]),
            *(
                f"{_number(group[metric]['p50'])}/{_number(group[metric]['p99'])}"
                for metric in ("ttft_ms", "itl_ms", "e2e_ms")
            ),
        )
    return table


def _stable_machine(result: Result) -> dict[str, Any]:
    return {k: v for k, v in result["machine"].items() if k != "load_average_1min"}


def _number(value: float | None) -> str:
    """Format with three or four significant digits."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
