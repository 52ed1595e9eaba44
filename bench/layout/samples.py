"""The pages: every kind in every variant, the same at every run."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

from bench.layout import prints, tables
from bench.layout.sheet import Sample, Sheet

from turret_server.pipeline.documents.page import Page, Word, upright

KINDS: dict[str, Callable[[Sheet], None]] = {
    "ruled table": tables.ruled,
    "unruled table": tables.unruled,
    "numeric table": tables.numeric,
    "wide table": tables.wide,
    "centred cells": tables.centred,
    "spanning heads": tables.spanning,
    "tables side by side": tables.side_by_side,
    "multi-line cells": tables.multi_line,
    "form": prints.form,
    "receipt": prints.receipt,
    "two columns": prints.article,
    "Chinese": tables.chinese,
    "Hebrew": tables.hebrew,
}
VARIANTS = ("clean", "ocr", "skew", "curl", "turned")
_HIGH, _LOW = frozenset("bdfhklt0123456789"), frozenset("gjpqy,;")


def make_samples(count: int, seed: int = 0) -> Iterator[Sample]:
    """So many pages of each kind in each variant."""
    for kind, draw in KINDS.items():
        for number in range(count):
            for variant in VARIANTS:
                rng = random.Random(f"{seed} {kind} {number}")
                sheet = Sheet(rng)
                draw(sheet)
                page = sheet.page()
                if variant != "clean":
                    page = scanned(page, rng)
                if variant in ("skew", "curl"):
                    page = skewed(page, rng.choice((-1, 1)) * rng.uniform(0.6, 2.0))
                if variant == "curl":
                    page = curled(page, rng.uniform(6.0, 14.0))
                if variant == "turned":
                    page = turned(page)
                yield Sample(f"{kind} {number} {variant}", kind, variant, page, sheet.truth)


def scanned(page: Page, rng: random.Random) -> Page:
    """Boxes as OCR gives them: close around the ink, and a little off."""
    words = []
    for word in page.words:
        left, top, right, bottom = word.box
        size = bottom - top
        if all(ord(char) < 0x590 for char in word.text):
            tall = any(char in _HIGH or char.isupper() for char in word.text)
            top += (0.03 if tall else 0.24) * size
            bottom -= (0.02 if any(char in _LOW for char in word.text) else 0.22) * size
        off = [rng.gauss(0.0, 0.03 * size) for _ in range(4)]
        left, top, right, bottom = left + off[0], top + off[1], right + off[2], bottom + off[3]
        right = max(right, left + 1.0)
        quad = upright(left, top, right, bottom)
        words.append(Word(word.text, quad, 0.9, word.line, word.block))
    return Page(words, page.width, page.height)


def skewed(page: Page, degrees: float) -> Page:
    """Turned clockwise about the middle, as a sheet that was fed askew; boxes stay upright.

    Some OCR gives corners, of which the angle can be seen; this is what all of it gives.
    """
    turn = math.radians(degrees)
    cos, sin = math.cos(turn), math.sin(turn)
    middle_x, middle_y = page.width / 2, page.height / 2
    words = []
    for word in page.words:
        left, top, right, bottom = word.box
        x, y = (left + right) / 2 - middle_x, (top + bottom) / 2 - middle_y
        x, y = middle_x + x * cos - y * sin, middle_y + x * sin + y * cos
        half_width = (abs((right - left) * cos) + abs((bottom - top) * sin)) / 2
        half_height = (abs((right - left) * sin) + abs((bottom - top) * cos)) / 2
        quad = upright(x - half_width, y - half_height, x + half_width, y + half_height)
        words.append(Word(word.text, quad, word.confidence, word.line, word.block))
    return Page(words, page.width, page.height)


def curled(page: Page, depth: float) -> Page:
    """Lines bent by so many pixels, as in a photograph of an open book."""
    words = []
    for word in page.words:
        left, top, right, bottom = word.box
        bend = depth * math.sin(math.pi * (left + right) / 2 / page.width)
        quad = upright(left, top + bend, right, bottom + bend)
        words.append(Word(word.text, quad, word.confidence, word.line, word.block))
    return Page(words, page.width, page.height)


def turned(page: Page) -> Page:
    """Turned clockwise by a quarter; the corners say so."""
    words = []
    for word in page.words:
        corners = zip(word.quad[0::2], word.quad[1::2], strict=True)
        a, b, c, d = [(page.height - y, x) for x, y in corners]
        words.append(Word(word.text, (*a, *b, *c, *d), word.confidence, word.line, word.block))
    return Page(words, page.height, page.width)
