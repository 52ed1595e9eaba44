"""What turns a page into text: ours, LATIN, and the tools that PDFs are read with."""

from __future__ import annotations

import importlib
import importlib.util
import io
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.layout.pdf import to_pdf

from turret_server.pipeline.documents.layout import LayoutOptions, lay_out
from turret_server.pipeline.documents.page import Page, Quad, Word

_CLOSE = 0.9  # heights between words of one OCR line


@dataclass(frozen=True, slots=True)
class Engine:
    """Something to compare.

    Attributes:
        name: in the table.
        prepare: makes of a page what `read` takes; its time does not count.
        read: lays it out.
        external: does so in a process of its own.
    """

    name: str
    prepare: Callable[[Page], object]
    read: Callable[[object], str]
    external: bool = False


def engines() -> list[Engine]:
    """All that can run here."""
    found = [
        Engine("Turret", _as_is, _ours("turret")),
        Engine("LATIN as published, words", _as_is, _ours("latin")),
        Engine("LATIN as published, OCR lines", joined, _ours("latin")),
        Engine("plain", _as_is, _ours("plain")),
    ]
    if shutil.which("pdftotext"):
        found.append(Engine("pdftotext -layout", to_pdf, _pdftotext, external=True))
    if importlib.util.find_spec("pdfplumber"):
        found.append(Engine("pdfplumber, layout", to_pdf, _pdfplumber))
    return found


def _as_is(page: Page) -> object:
    return page


def _ours(mode: str) -> Callable[[object], str]:
    options = LayoutOptions(mode=mode)  # type: ignore[arg-type]

    def read(page: object) -> str:
        assert isinstance(page, Page)
        return lay_out(page, options).text

    return read


def joined(page: Page) -> Page:
    """The words of each line that stand close, as one: the lines that LATIN's inputs consist of."""
    segments: list[Word] = []
    for word in page.words:
        last = segments[-1] if segments else None
        if last is not None and last.line == word.line and _gap(last.quad, word.quad) < _CLOSE:
            first, second = last.quad, word.quad
            if _along(first, second[0:2]) < 0:  # from right to left
                first, second = second, first
            a, b, _, _, _, _, g, h = first
            _, _, c, d, e, f, _, _ = second
            segments[-1] = Word(
                f"{last.text} {word.text}", (a, b, c, d, e, f, g, h), line=word.line
            )
        else:
            segments.append(word)
    return Page(segments, page.width, page.height)


def _gap(a: Quad, b: Quad) -> float:
    """What is between two words of a line, in heights."""
    length = _along(a, a[2:4])
    gap = max(_along(a, b[0:2]) - length, -_along(a, b[2:4]))
    return gap / max(math.dist(a[0:2], a[6:8]), 1e-9)


def _along(quad: Quad, point: Sequence[float]) -> float:
    """How far a point is from a word's beginning, in its direction of reading."""
    x, y = quad[2] - quad[0], quad[3] - quad[1]
    return ((point[0] - quad[0]) * x + (point[1] - quad[1]) * y) / max(math.hypot(x, y), 1e-9)


def _pdftotext(pdf: object) -> str:
    assert isinstance(pdf, bytes)
    with tempfile.NamedTemporaryFile(suffix=".pdf") as file:
        Path(file.name).write_bytes(pdf)
        done = subprocess.run(
            ["pdftotext", "-layout", "-enc", "UTF-8", file.name, "-"],
            capture_output=True, check=True,
        )  # fmt: skip
    return done.stdout.decode()


def _pdfplumber(pdf: object) -> str:
    assert isinstance(pdf, bytes)
    pdfplumber = importlib.import_module("pdfplumber")
    with pdfplumber.open(io.BytesIO(pdf)) as document:
        return document.pages[0].extract_text(layout=True) or ""
