"""The panels of a Grafana dashboard file, as far as expressions go."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

_RATE_INTERVAL = "1m"  # what Grafana puts in for a scrape every fifteen seconds


@dataclass(frozen=True, slots=True)
class Target:
    """One expression, with the variables put in, and how its series are called."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture; `row` is the heading above it."""

    row: str
    title: str
    unit: str
    targets: tuple[Target, ...]


def read_panels(path: Path, rate_interval: str = _RATE_INTERVAL) -> list[Panel]:
    """All panels of a dashboard, for all servers."""
    row, found = "", []
    for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            continue
        targets = tuple(
            Target(
                target["expr"]
                .replace("$__rate_interval", rate_interval)
                .replace("$instance", ".*"),
                target["legendFormat"],
            )
            for target in panel["targets"]
        )
        unit = panel["fieldConfig"]["defaults"]["unit"]
        found.append(Panel(row, panel["title"], unit, targets))
    return found
