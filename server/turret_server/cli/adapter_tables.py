"""Tables about adapters: what a folder holds, and what a server serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal
from rich.table import Table

from turret_adapters.spec import ranges
from turret_server.cli.terminal import marked

if TYPE_CHECKING:
    from turret_adapters.spec import Site


def description_tables(report: dict[str, Any]) -> list[Table]:
    """Tables of what `turret_adapters.inspect.describe` reports; what it lacks is left out."""
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for label, key, shown in (
        ("path", "path", str),
        ("kind", "kind", str),
        ("base model", "base_model", str),
        ("parameters", "num_parameters", "{:,}".format),
        ("size", "num_bytes", decimal),
        ("tensors", "num_tensors", "{:,}".format),
        ("stored as", "dtypes", ", ".join),
        ("digest", "digest", str),
    ):
        if report.get(key) is not None:
            facts.add_row(label, marked(shown(report[key])))
    tables = [facts]
    if report.get("modules"):
        modules = Table("module", "rank", "layers")
        for name, found in report["modules"].items():
            ranks = ", ".join(map(str, found["ranks"]))
            modules.add_row(marked(name), ranks, ranges(found["layers"]))
        tables.append(modules)
    return tables


def served_table(cards: Sequence[dict[str, Any]]) -> Table:
    """A table of the cards of GET /v1/adapters."""
    table = Table("name", "kind", "rank", "size", "tier", "digest", "source")
    for column in table.columns:
        column.no_wrap = True
    table.columns[2].justify = table.columns[3].justify = "right"
    for column in (table.columns[0], table.columns[-1]):
        column.no_wrap, column.overflow = False, "fold"
    for card in cards:
        table.add_row(
            marked(card["id"]),
            marked(str(card.get("kind", ""))),
            str(card.get("rank") or ""),
            decimal(card.get("num_bytes", 0)),
            _tier(card),
            marked(str(card.get("digest", "")))[:12],
            marked(str(card.get("source", card.get("path", "")))),
        )
    return table


def _tier(card: dict[str, Any]) -> str:
    return f"{card.get('tier', '')}{', pinned' if card.get('pinned') else ''}"


def drift_table(drift: Mapping[Site, float]) -> Table:
    """Relative errors by module, over the layers."""
    by_module: dict[str, list[float]] = {}
    for site, value in drift.items():
        by_module.setdefault(str(site.module), []).append(value)
    table = Table("module", "drift, mean", "worst")
    for column in table.columns[1:]:
        column.justify = "right"
    for module, values in by_module.items():
        table.add_row(marked(module), f"{sum(values) / len(values):.1%}", f"{max(values):.1%}")
    return table
