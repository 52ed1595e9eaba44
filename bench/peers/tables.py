"""The tables of the comparison in Markdown, from the results on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from loads import LOADS

from turret_server.loadtest.result import Result

_OURS = "turret"
_BEGIN, _END = "<!-- numbers: begin -->", "<!-- numbers: end -->"
Runs = dict[tuple[str, str], list[Result]]  # (load, server) -> repetitions


def render_tables(results: Sequence[Result]) -> str:
    """Return throughput with ratios, latencies, and memory, medians over the repetitions."""
    if not results:
        return "No results yet.\n"
    runs: Runs = {}
    for result in results:
        runs.setdefault((result["load"], result["server"]["name"]), []).append(result)
    found = {server for _, server in runs}
    servers = sorted(found, key=lambda name: (name != _OURS, name))
    parts = [
        _provenance(results),
        "Tokens per second, median of the repetitions (lowest to highest); in brackets how many "
        "times as fast Turret is.\n",
        _throughput(runs, servers),
        "Latencies in milliseconds, median of the repetitions: time to first token p50 / p99, "
        "inter-token p50 / p99.\n",
        _table(runs, servers, _latencies),
        "Memory of all processes after the load in MB (proportional set size, KV cache "
        "included), and seconds from start to ready.\n",
        _table(runs, servers, _memory),
    ]
    return "\n".join(parts)


def update_file(path: Path, tables: str) -> None:
    """Put the tables between the two marker comments of a Markdown file.

    Raises:
        ValueError: the file lacks the markers.
    """
    text = path.read_text(encoding="utf-8")
    head, begin, rest = text.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"{path} has no {_BEGIN} and {_END}: add both lines where the table goes.")
    path.write_text(f"{head}{_BEGIN}\n\n{tables}\n{_END}{tail}", encoding="utf-8")


def _provenance(results: Sequence[Result]) -> str:
    newest = max(results, key=lambda result: result["finished_at"])
    machines = {
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB"
        for machine in (result["machine"] for result in results)
    }
    versions: dict[str, str] = {}
    for result in results:
        found = result["server"]["versions"]
        versions[result["server"]["name"]] = " + ".join(f"{k} {v}" for k, v in found.items())
    commits = sorted({str(result["git_commit"]) for result in results})
    lines = [
        # More than one line here means that the rows below cannot be compared.
        *(f"- Machine: {machine}" for machine in sorted(machines)),
        f"- Finished: {newest['finished_at']}, commit {', '.join(commits)}",
        *(f"- {name}: {text}" for name, text in sorted(versions.items())),
    ]
    if errors := sum(sum(r["summary"]["errors"].values()) for r in results):
        lines.append(f"- Requests that failed: {errors}")
    return "\n".join(lines) + "\n"


def _throughput(runs: Runs, servers: Sequence[str]) -> str:
    metrics = {load.name: load.metric for load in LOADS}

    def cell(load: str, found: list[Result], server: str) -> str:
        values = [result["summary"][metrics[load]] for result in found]
        text = f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
        ours = [r["summary"][metrics[load]] for r in runs.get((load, _OURS), [])]
        if server == _OURS or not ours or not median(values):
            return text
        return f"{text} [{median(ours) / median(values):.2f}]"

    return _table(runs, servers, cell)


def _latencies(load: str, found: list[Result], server: str) -> str:
    def middle(metric: str, percentile: str) -> str:
        values = [result["summary"][metric][percentile] for result in found]
        numbers = [value for value in values if value is not None]
        return f"{median(numbers):.0f}" if numbers else "-"

    first = f"{middle('ttft_ms', 'p50')} / {middle('ttft_ms', 'p99')}"
    return f"{first}, {middle('itl_ms', 'p50')} / {middle('itl_ms', 'p99')}"


def _memory(load: str, found: list[Result], server: str) -> str:
    memory = median(result["server"]["memory_mb"] for result in found)
    start = median(result["server"]["start_s"] for result in found)
    return f"{memory:.0f}, {start:.1f}"


def _table(
    runs: Runs, servers: Sequence[str], cell: Callable[[str, list[Result], str], str]
) -> str:
    lines = [f"| load | {' | '.join(servers)} |", "|---" * (len(servers) + 1) + "|"]
    for load in LOADS:
        cells = [
            cell(load.name, runs[load.name, server], server) if (load.name, server) in runs else "-"
            for server in servers
        ]
        if set(cells) != {"-"}:
            lines.append(f"| {load.title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
