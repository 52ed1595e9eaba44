"""A page as a picture: its words, and the boxes that an engine gets of them."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from bench.layout.sheet import advance

from turret_server.pipeline.documents.page import Page, Word

_WIDTH = 620.0  # of the picture, in pixels
_MARGIN = 0.05  # below the last word, in widths of the page


def to_svg(page: Page) -> str:
    """The page, as wide as a column of a document."""
    scale = _WIDTH / page.width
    end = max((word.box[3] for word in page.words), default=page.height)
    height = min(page.height, end + _MARGIN * page.width) * scale
    boxes = "".join(_outline(word, scale) for word in page.words)
    texts = "\n".join(_text(word, scale) for word in page.words)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" '
        f'font-family="Helvetica, Arial, sans-serif">\n'
        f'<rect width="100%" height="100%" fill="#fff" stroke="#ccc"/>\n'
        f'<path fill="#dbe9ff" stroke="#7aa7e8" stroke-width=".5" d="{boxes}"/>\n'
        f"{texts}\n</svg>\n"
    )


def _outline(word: Word, scale: float) -> str:
    points = [f"{value * scale:.1f}" for value in word.quad]
    corners = [" ".join(points[i : i + 2]) for i in range(0, 8, 2)]
    return f"M{corners[0]}L{' '.join(corners[1:])}z"


def _text(word: Word, scale: float) -> str:
    x0, y0, x1, y1, _, _, x3, y3 = [value * scale for value in word.quad]
    width, height = math.hypot(x1 - x0, y1 - y0), math.hypot(x3 - x0, y3 - y0)
    angle = math.degrees(math.atan2(y1 - y0, x1 - x0))
    turn = f' transform="rotate({angle:.1f} {x3:.1f} {y3:.1f})"' if abs(angle) > 0.05 else ""
    size = width / advance(word.text)
    return (
        f'<text x="{x3:.1f}" y="{y3 - 0.2 * height:.1f}" font-size="{size:.1f}" '
        f'textLength="{width:.1f}"{turn}>{escape(word.text)}</text>'
    )
