"""One HTML file for a comparison: tables and plots inline, nothing fetched from anywhere."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from html import escape

from turret_server.loadtest.plots import draw, to_svg
from turret_server.loadtest.result import Result
from turret_server.loadtest.table import comparison_rows, differences

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #8884; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; background: #fff; border-radius: 6px; }
figure svg { width: 100%; height: auto; }
pre { overflow-x: auto; background: #8881; padding: .7rem; border-radius: 6px; }
.note { border-left: 4px solid #D55E00; padding: .1rem .8rem; }
"""
_CAPTIONS = {
    "throughput": "Output tokens per second",
    "latency": "Latency distributions (requests without error)",
    "timeline": "Output over the run",
    "models": "Tail latency of each model",
}


def render_html(results: Sequence[Result]) -> str:
    """Return the report of a comparison.

    Raises:
        StartupError: matplotlib is not installed.
    """
    figures = draw(results)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><title>Load test comparison</title>',
        f"<style>{_STYLE}</style></head><body><h1>Load test comparison</h1>",
        *(f'<p class="note">{escape(sentence)}</p>' for sentence in differences(results)),
        "<p>Latencies in milliseconds; ratios against the first row.</p>",
        _table(*comparison_rows(results)),
    ]
    for name, figure in figures.items():
        parts.append(f"<h2>{_CAPTIONS[name]}</h2><figure>{to_svg(figure, name)}</figure>")
    parts += [_details(result) for result in results]
    parts.append("</body></html>")
    return "\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _details(result: Result) -> str:
    facts = {
        "machine": result["machine"],
        "versions": result["versions"],
        "server": result["server"],
        "commit": result["git_commit"],
        "finished at": result["finished_at"],
        "errors": result["error_examples"],
        "config": result["config"],
    }
    return (
        f"<h2>{escape(result['label'])}</h2>"
        f"<pre>{escape(shlex.join(result['command']))}</pre>"
        f"<details><summary>How it was measured</summary>"
        f"<pre>{escape(json.dumps(facts, indent=1, ensure_ascii=False))}</pre></details>"
    )
