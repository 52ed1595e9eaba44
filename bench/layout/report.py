"""The comparison as rows, as JSON and as a table in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from bench.layout.metrics import Scores
from bench.layout.samples import KINDS, VARIANTS
from bench.layout.sheet import Sample


@dataclass(frozen=True, slots=True)
class Row:
    """One page in one engine."""

    engine: str
    sample: Sample
    scores: Scores
    seconds: float


def summary(rows: Sequence[Row]) -> dict[str, float | None]:
    """What the pages of one engine come to."""
    scores = [row.scores for row in rows]
    per_1000 = 1000 / sum(score.words for score in scores)
    return {
        "adjacency_f1": _mean([score.adjacency for score in scores]),
        "order": _mean([score.order for score in scores]),
        "linear_order": _mean([score.linear for score in scores]),
        "glued_per_1000_words": round(per_1000 * sum(score.glued for score in scores), 2),
        "lost_per_1000_words": round(per_1000 * sum(score.lost for score in scores), 2),
        "invented_per_1000_words": round(per_1000 * sum(score.invented for score in scores), 2),
        "chars_per_page": round(mean(score.chars for score in scores)),
        "pages_per_second": round(len(rows) / max(sum(row.seconds for row in rows), 1e-9), 1),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(mean(known), 4) if known else None


def parts_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by kind and by variant of their pages."""
    return {
        **{kind: [row for row in rows if row.sample.kind == kind] for kind in KINDS},
        **{name: [row for row in rows if row.sample.variant == name] for name in VARIANTS},
    }


def results(rows: Sequence[Row], settings: dict[str, Any]) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        "settings": settings,
        "engines": {
            engine: {
                "all": summary(of_engine),
                **{part: summary(some) for part, some in parts_of(of_engine).items()},
            }
            for engine, of_engine in _by_engine(rows).items()
        },
        "worst": {
            engine: [
                {"page": row.sample.name, **asdict(row.scores)} for row in worst(of_engine, 10)
            ]
            for engine, of_engine in _by_engine(rows).items()
        },
    }


def _by_engine(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.engine, []).append(row)
    return found


def worst(rows: Sequence[Row], count: int) -> list[Row]:
    """The pages that came out worst, of one engine; none that is faultless."""

    def faults(row: Row) -> tuple[float, float, str]:
        scores = row.scores
        broken = (scores.glued + scores.lost + scores.invented) / scores.words
        cells = 1.0 - (1.0 if scores.adjacency is None else scores.adjacency)
        order = 1.0 - (1.0 if scores.order is None else scores.order)
        return broken + cells, order, row.sample.name

    ranked = sorted(rows, key=faults, reverse=True)
    return [row for row in ranked if faults(row)[:2] > (0.0, 0.0)][:count]


def markdown(rows: Sequence[Row]) -> str:
    """The tables that a reader wants."""
    engines = _by_engine(rows)
    some = next(iter(engines.values()))
    lines = [
        f"{len(some)} pages, {sum(row.scores.words for row in some)} words: "
        f"{', '.join(KINDS)}; each {', '.join(VARIANTS)}.",
        "",
        "| engine | cell adjacency F1 | order | linear order | glued | lost | invented |"
        " characters a page | pages a second |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for engine, of_engine in engines.items():
        all_ = summary(of_engine)
        lines.append(
            f"| {engine} | {_number(all_['adjacency_f1'])} | {_number(all_['order'])} | "
            f"{_number(all_['linear_order'])} | {all_['glued_per_1000_words']:.1f} | "
            f"{all_['lost_per_1000_words']:.1f} | {all_['invented_per_1000_words']:.1f} | "
            f"{all_['chars_per_page']} | {all_['pages_per_second']:.0f} |"
        )
    lines += ["", "Glued, lost and invented: per 1,000 words.", ""]
    lines += _breakdown("Cell adjacency F1", engines, "adjacency_f1")
    lines += _breakdown("Order", engines, "order")
    bad = worst(engines.get("Turret", some), 6)
    lines += ["Turret's worst pages:", ""]
    lines += [
        f"- {row.sample.name}: adjacency {_number(row.scores.adjacency)}, order "
        f"{_number(row.scores.order)}, {row.scores.glued} glued, {row.scores.lost} lost"
        for row in bad
    ] or ["- none has a fault that these numbers see"]
    return "\n".join(lines) + "\n"


def _breakdown(title: str, engines: dict[str, list[Row]], name: str) -> list[str]:
    parts = [*KINDS, *VARIANTS]
    lines = [f"| {title} | {' | '.join(parts)} |", "|---|" + "---:|" * len(parts)]
    for engine, rows in engines.items():
        cells = [_number(summary(some)[name]) for some in parts_of(rows).values()]
        lines.append(f"| {engine} | {' | '.join(cells)} |")
    return [*lines, ""]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
