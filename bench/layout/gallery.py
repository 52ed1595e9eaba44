"""Writes docs/layout-gallery.md: pages, what LATIN makes of them, and what we make of them.

python -m bench.layout.gallery
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.layout.engines import joined
from bench.layout.metrics import Scores, score
from bench.layout.report import Row, worst
from bench.layout.samples import make_samples
from bench.layout.sheet import Sample
from bench.layout.svg import to_svg

from turret_server.pipeline.documents.layout import LayoutOptions, lay_out

_DOCS = Path(__file__).parents[2] / "docs"
_SHOWN = {
    "ruled table": "ocr",
    "numeric table": "skew",
    "wide table": "clean",
    "spanning heads": "clean",
    "multi-line cells": "ocr",
    "form": "skew",
    "receipt": "ocr",
    "two columns": "ocr",
    "Chinese": "clean",
    "Hebrew": "clean",
}
_LINES, _COLUMNS = 26, 118  # of a text, as far as it is shown
_NUM_WORST = 3
_LATIN = LayoutOptions(mode="latin")
_HEAD = """# Gallery: pages, boxes and texts

Pages that `bench/layout` draws (`python -m bench.layout.gallery` writes this file): the words and
boxes that an engine gets, LATIN-Prompt's text as published, and Turret's. LATIN gets the lines of
an OCR, as its authors feed it: words that stand close are joined, in reading order. Turret gets
single words. The numbers are those of `python -m bench.layout`: the F1 of neighbouring cells, the
share of words that the next one follows, and words glued together.

Variants: *clean* boxes are those of the font; *ocr* ones hug the ink and are a little off; *skew*
is a sheet fed askew; *curl* one that is bent as well; *turned* lies on its side.
"""


def gallery(samples: list[Sample], pictures: str) -> tuple[str, dict[str, str]]:
    """The page in Markdown, and the pictures by file name.

    Args:
        samples: all pages; the worst of them are shown at the end.
        pictures: the folder that links name.
    """
    parts, files = [_HEAD], {}
    shown = [next(s for s in samples if s.kind == k and s.variant == v) for k, v in _SHOWN.items()]
    rows = [
        Row("Turret", sample, score(sample, lay_out(sample.page).text), 0.0) for sample in samples
    ]
    bad = [row.sample for row in worst(rows, _NUM_WORST)]
    for title, group in (("", shown), ("## The worst pages\n", bad)):
        if title and group:
            parts.append(title)
        for sample in group:
            name = sample.name.replace(" ", "-").lower() + ".svg"
            files[name] = to_svg(sample.page)
            parts.append(_entry(sample, f"{pictures}/{name}"))
    return "\n".join(parts), files


def _entry(sample: Sample, picture: str) -> str:
    latin = lay_out(joined(sample.page), _LATIN).text
    ours = lay_out(sample.page).text
    return (
        f"### {sample.kind}, {sample.variant}\n\n![The page]({picture})\n\n"
        f"LATIN as published ({_numbers(score(sample, latin))}):\n\n```text\n{_cut(latin)}\n```\n\n"
        f"Turret ({_numbers(score(sample, ours))}):\n\n```text\n{_cut(ours)}\n```\n"
    )


def _numbers(scores: Scores) -> str:
    found = [] if scores.adjacency is None else [f"cells {scores.adjacency:.3f}"]
    found += [] if scores.order is None else [f"order {scores.order:.3f}"]
    return ", ".join([*found, f"{scores.glued} glued", f"{scores.chars} characters"])


def _cut(text: str) -> str:
    lines = [line if len(line) <= _COLUMNS else line[:_COLUMNS] + "…" for line in text.split("\n")]
    return "\n".join(lines if len(lines) <= _LINES else [*lines[:_LINES], "…"])


def main() -> None:
    """Write the page and its pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--docs", type=Path, default=_DOCS)
    parser.add_argument("--count", type=int, default=5, help="pages to look for the worst among")
    args = parser.parse_args()
    folder = args.docs / "layout-gallery"
    text, files = gallery(list(make_samples(args.count)), folder.name)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    for name, picture in files.items():
        (folder / name).write_text(picture)
    (args.docs / "layout-gallery.md").write_text(text)


if __name__ == "__main__":
    main()
