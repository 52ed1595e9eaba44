"""A web page that shows pages with the boxes of their words beside their text."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from turret_server.pipeline.documents.layout import PageText
from turret_server.pipeline.documents.ocr.kinds import PDF, kind_of
from turret_server.pipeline.documents.page import Page

_WIDTH = 1000
_A4 = 2**0.5  # of a page whose proportions are not known
_RENDER_DPI = 110
_MAX_SIDE_PX = 2200  # of what is drawn anew; browsers get other pictures as they are
_BROWSERS_SHOW = {"PNG": "png", "JPEG": "jpeg", "GIF": "gif", "WEBP": "webp", "BMP": "bmp"}

_STYLE = """
body { margin: 0; font: 14px/1.4 system-ui, sans-serif; background: #f4f4f2; color: #222 }
h2 { font-size: 14px; margin: 0; padding: 12px 16px 4px }
section { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 12px }
section { padding: 4px 16px 20px }
svg, pre { margin: 0; background: #fff; box-shadow: 0 0 0 1px #ccc }
svg { width: 100%; height: auto }
pre { padding: 12px; overflow: auto; font: 12px/1.45 ui-monospace, monospace }
polygon { fill: #2a6fdb14; stroke: #2a6fdb; stroke-width: 1; vector-effect: non-scaling-stroke }
polygon.cited { fill: #f5a62350; stroke: #c47500; stroke-width: 2 }
polygon.on { fill: #d4303050; stroke: #d43030 }
pre span.cited { background: #f5a62360 }
pre span.on { background: #d4303050 }
"""

_SCRIPT = """
for (const type of ["mouseover", "mouseout"])
  document.addEventListener(type, event => {
    const id = event.target.dataset && event.target.dataset.word;
    if (id) for (const node of document.querySelectorAll(`[data-word="${id}"]`))
      node.classList.toggle("on", type === "mouseover");
  });
"""


@dataclass(frozen=True, slots=True)
class PageView:
    """A page to show.

    Attributes:
        title: above it.
        data: of the file that it is a page of.
        page: as it was read.
        text: as it was laid out.
        cited: words to mark.
    """

    title: str
    data: bytes
    page: Page
    text: PageText
    cited: Collection[int] = field(default=())


def show_pages(views: Sequence[PageView]) -> Path:
    """Write the web page into a folder for temporary files, and return its path."""
    sections = "\n".join(_section(at, view) for at, view in enumerate(views))
    page = (
        '<!doctype html>\n<html><head><meta charset="utf-8"><title>Layout</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{sections}\n<script>{_SCRIPT}</script>"
        "</body></html>\n"
    )
    folder = Path(tempfile.mkdtemp(prefix="turret-layout-"))
    path = folder / "pages.html"
    path.write_text(page, encoding="utf-8")
    return path


def _section(at: int, view: PageView) -> str:
    page, cited = view.page, set(view.cited)
    # Lengths in thousandths of the width: browsers draw no text in units of pages.
    is_unsized = page.unit == "relative" and page.width == page.height
    x_scale = _WIDTH / page.width
    height = _WIDTH * (_A4 if is_unsized else page.height / page.width)
    y_scale = height / page.height
    shapes = []
    if picture := _picture(view):
        shapes.append(
            f'<image href="{picture}" width="{_WIDTH}" height="{height:g}" '
            'preserveAspectRatio="none"/>'
        )
    for index, word in enumerate(page.words):
        xs = [x * x_scale for x in word.quad[0::2]]
        ys = [y * y_scale for y in word.quad[1::2]]
        if not picture:
            shapes.append(_drawn(word.text, min(xs), min(ys), max(xs), max(ys)))
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        shapes.append(
            f'<polygon data-word="{at}-{index}"{_class(index in cited)} points="{points}">'
            f"<title>{escape(word.text)}</title></polygon>"
        )
    return (
        f"<h2>{escape(view.title)}</h2>\n<section>"
        f'<svg viewBox="0 0 {_WIDTH} {height:g}">{"".join(shapes)}</svg>'
        f"<pre>{_marked(at, view.text, cited)}</pre></section>"
    )


def _marked(at: int, text: PageText, cited: Collection[int]) -> str:
    """The text with every word in an element of its own."""
    words = sorted((start, end, i) for i, (start, end) in enumerate(text.spans) if start >= 0)
    parts, done = [], 0
    for start, end, index in words:
        parts.append(escape(text.text[done:start]))
        word = escape(text.text[start:end])
        parts.append(f'<span data-word="{at}-{index}"{_class(index in cited)}>{word}</span>')
        done = end
    return "".join(parts) + escape(text.text[done:])


def _class(cited: bool) -> str:
    return ' class="cited"' if cited else ""


def _drawn(text: str, left: float, top: float, right: float, bottom: float) -> str:
    """A word where there is no picture of it."""
    height = bottom - top
    return (
        f'<text x="{left:.1f}" y="{bottom - height * 0.2:.1f}" font-size="{height:.1f}" '
        f'textLength="{right - left:.1f}" lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
    )


def _picture(view: PageView) -> str | None:
    """The page as a data URL; None for OCR results, which bring no picture."""
    kind = kind_of(view.data)
    if kind is None:
        return None
    if (name := _BROWSERS_SHOW.get(kind)) is not None:
        return _data_url(name, view.data)
    return _data_url("png", _rendered(view.data, view.page.number, is_pdf=kind == PDF))


def _rendered(data: bytes, number: int, *, is_pdf: bool) -> bytes:
    from PIL import Image, ImageOps

    if is_pdf:
        import pypdfium2

        with pypdfium2.PdfDocument(data) as document:
            picture = document[number - 1].render(scale=_RENDER_DPI / 72).to_pil()  # pyright: ignore[reportArgumentType]
    else:
        opened = Image.open(io.BytesIO(data))
        opened.seek(number - 1)
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    picture.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
