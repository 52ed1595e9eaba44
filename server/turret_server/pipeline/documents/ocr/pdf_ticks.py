"""Check boxes and radio buttons of a PDF's form: what is ticked is a drawing, and no text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pypdfium2 as pdfium
import pypdfium2.raw as raw

from turret_server.pipeline.documents.page import Word, mark, upright

_MAX_TICKS = 2_000  # of a page: each is compared with all its words
_KINDS = (raw.FPDF_FORMFIELD_CHECKBOX, raw.FPDF_FORMFIELD_RADIOBUTTON)
_UNSEEN = raw.FPDF_ANNOT_FLAG_HIDDEN | raw.FPDF_ANNOT_FLAG_NOVIEW
_DRAWN = 2  # characters of what stands in a box at most: a cross, a sign of a symbol font

# From the space of a page to where it is displayed.
Displayed = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Tick:
    """A box that can be ticked: its sides in the space of the page, and whether it is."""

    left: float
    bottom: float
    right: float
    top: float
    ticked: bool


def ticks(page: pdfium.PdfPage, form: Any) -> list[Tick]:
    """Return the boxes of a page's form, before it is merged into the page.

    Args:
        page: of the PDF.
        form: raw handle of the PDF's form.
    """
    found = []
    for number in range(raw.FPDFPage_GetAnnotCount(page)):
        field = raw.FPDFPage_GetAnnot(page, number)
        if not field:
            continue
        rect = raw.FS_RECTF()
        if (
            raw.FPDFAnnot_GetFormFieldType(form, field) in _KINDS
            and not raw.FPDFAnnot_GetFlags(field) & _UNSEEN
            and raw.FPDFAnnot_GetRect(field, rect)
        ):
            ticked = bool(raw.FPDFAnnot_IsChecked(form, field))
            found.append(Tick(rect.left, rect.bottom, rect.right, rect.top, ticked))
        raw.FPDFPage_CloseAnnot(field)
        if len(found) == _MAX_TICKS:
            break
    return found


def marked(
    words: Sequence[Word],
    boxes: Sequence[Tick],
    displayed: Displayed,
    size: tuple[float, float],
) -> list[Word]:
    """Return the words of a page with a sign for each box, in place of what is drawn in it.

    Args:
        words: of the page.
        boxes: of its form; what is off the page is left out.
        displayed: where their corners are.
        size: width and height of the page as it is displayed.
    """
    quarters = _quarters(words)
    kept = list(words)
    signs: list[Word] = []
    for tick in boxes:
        corners = displayed(tick.left, tick.top), displayed(tick.right, tick.bottom)
        xs, ys = zip(*corners, strict=True)
        if not (0 <= sum(xs) / 2 <= size[0] and 0 <= sum(ys) / 2 <= size[1]):
            continue
        left, right = max(min(xs), 0.0), min(max(xs), size[0])
        top, bottom = max(min(ys), 0.0), min(max(ys), size[1])
        kept = [word for word in kept if not _drawn_in(word, left, top, right, bottom)]
        quad = upright(left, top, right, bottom)
        turned: Any = quad[2 * quarters :] + quad[: 2 * quarters]
        signs.append(Word(mark(tick.ticked), turned))
    return kept + signs


def _drawn_in(word: Word, left: float, top: float, right: float, bottom: float) -> bool:
    if len(word.text) > _DRAWN:
        return False
    a, b, c, d = word.box
    return left < (a + c) / 2 < right and top < (b + d) / 2 < bottom


def _quarters(words: Sequence[Word]) -> int:
    """By how many quarters of a circle, clockwise, most words are turned."""
    turns = Counter(_turn(word) for word in words)
    return turns.most_common(1)[0][0] if turns else 0


def _turn(word: Word) -> int:
    x, y = word.quad[2] - word.quad[0], word.quad[3] - word.quad[1]
    if abs(x) >= abs(y):
        return 0 if x >= 0 else 2
    return 1 if y > 0 else 3
