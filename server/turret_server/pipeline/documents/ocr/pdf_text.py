"""The words of a born-digital page, from the characters that PDFium finds."""

from __future__ import annotations

import ctypes
import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import pypdfium2 as pdfium
import pypdfium2.raw as raw

from turret_server.errors import Unprocessable

MAX_CHARS = 200_000  # of a page

_WORD_GAP = 0.15  # em; spaces are 0.2 and more, kerning is less
_BASELINE = 0.5  # em; superscripts stay with their word
_BACK = 0.5  # em; characters may overlap, but a step back is another line
_COSINE = 0.985  # 10 degrees; text in another direction is another word
_TRACKED_GAPS = 3  # as many equal gaps between letters are letter-spacing
_HYPHEN = 0x02  # PDFium's sign for a hyphen at the end of a line
_SOFT_HYPHEN = 0xAD
_JOINERS = ("\u200c", "\u200d")  # invisible, but Arabic and Indic words need them
_HIDDEN_MODES = (3, 7)  # text that is neither filled nor stroked


@dataclass(frozen=True, slots=True)
class Character:
    """A character, in the space of the page: points, y upwards.

    Attributes:
        text: "" where the font does not say.
        x: of its origin.
        y: of its origin.
        across: unit vector in the direction of reading.
        advance: to the origin of the next, in that direction.
        below: from the origin down to the lower edge, positive downwards.
        height: of its box.
        size: of the font, in points on the page.
        hidden: it is not painted, such as the text that OCR puts behind a scan.
    """

    text: str
    x: float
    y: float
    across: tuple[float, float]
    advance: float
    below: float
    height: float
    size: float
    hidden: bool


@dataclass(frozen=True, slots=True)
class TextWord:
    """A word; `corners` top left, top right, bottom right, bottom left as it is read."""

    text: str
    corners: tuple[tuple[float, float], ...]
    line: int
    hidden: bool


def words(characters: list[Character]) -> Iterator[TextWord]:
    """Group characters into words, by real gaps and not by the file's spaces alone."""
    line: list[Character] = []
    number = 0
    for character in characters:
        if line and _breaks(line[-1], character):
            yield from _words(line, number)
            line, number = [], number + 1
        line.append(character)
    yield from _words(line, number)


def characters(page: pdfium.PdfPage) -> list[Character]:
    """Return the characters of a page in the order of its content.

    Raises:
        Unprocessable: it has too many.
    """
    text = page.get_textpage()
    try:
        count = text.count_chars()
        if count > MAX_CHARS:
            raise Unprocessable(
                f"a page of the document has {count} characters", f"at most {MAX_CHARS} are read"
            )
        return list(_characters(text.raw, count))
    finally:
        text.close()


def _characters(text: Any, count: int) -> Iterator[Character]:
    box, matrix = raw.FS_RECTF(), raw.FS_MATRIX()
    x, y = ctypes.c_double(), ctypes.c_double()
    high = 0
    for i in range(count):
        if raw.FPDFText_IsGenerated(text, i):
            continue  # a guess of PDFium's at a space or a line's end
        code = raw.FPDFText_GetUnicode(text, i)
        if 0xD800 <= code < 0xDC00:
            high = code
            continue
        if 0xDC00 <= code < 0xE000:
            code = 0x10000 + ((high - 0xD800) << 10) + (code - 0xDC00) if high else 0
        high = 0
        raw.FPDFText_GetLooseCharBox(text, i, box)
        raw.FPDFText_GetCharOrigin(text, i, x, y)
        raw.FPDFText_GetMatrix(text, i, matrix)
        scale = math.hypot(matrix.a, matrix.b)
        size = raw.FPDFText_GetFontSize(text, i) * math.hypot(matrix.c, matrix.d)
        if not (scale > 0 and size > 0 and math.isfinite(scale + size + x.value + y.value)):
            continue
        across = matrix.a / scale, matrix.b / scale
        owner = raw.FPDFText_GetTextObject(text, i)
        hidden = bool(owner) and raw.FPDFTextObj_GetTextRenderMode(owner) in _HIDDEN_MODES
        unmapped = raw.FPDFText_HasUnicodeMapError(text, i) == 1
        yield _character(
            "" if unmapped else _text(code), x.value, y.value, across, box, size, hidden
        )


def _character(
    text: str,
    x: float,
    y: float,
    across: tuple[float, float],
    box: raw.FS_RECTF,
    size: float,
    hidden: bool,
) -> Character:
    """PDFium's box is upright; of turned text it goes around the turned box."""
    cos, sin = across
    to_x, to_y = (box.left + box.right) / 2 - x, (box.top + box.bottom) / 2 - y
    advance = max(2 * (to_x * cos + to_y * sin), 0.0)
    if abs(cos) >= abs(sin):
        height = (box.top - box.bottom - advance * abs(sin)) / abs(cos)
    else:
        height = (box.right - box.left - advance * abs(cos)) / abs(sin)
    height = min(max(height, 0.5 * size), 1.5 * size)  # fonts may claim anything
    below = height / 2 - (to_y * cos - to_x * sin)
    return Character(text, x, y, across, advance, below, height, size, hidden)


def _text(code: int) -> str:
    if code in (_HYPHEN, _SOFT_HYPHEN):
        return "-"
    if code > 0x10FFFF:
        return ""
    text = chr(code)
    if 0xFB00 <= code <= 0xFB06:  # ligatures of Latin letters
        return unicodedata.normalize("NFKC", text)
    if text.isspace() or text in _JOINERS:
        return text
    return "" if unicodedata.category(text) in ("Cc", "Cf", "Cs", "Co", "Cn") else text


def _breaks(before: Character, character: Character) -> bool:
    """Whether a line ends between two characters."""
    cosine = before.across[0] * character.across[0] + before.across[1] * character.across[1]
    if cosine < _COSINE:
        return True
    em = max(before.size, character.size)
    across, up = _offset(before, character)
    if abs(up) > _BASELINE * em:
        return True
    # From right to left, the next stands on the left; its gap is seen all the same.
    return across < -_BACK * em - character.advance or across - before.advance > 10 * em


def _offset(before: Character, character: Character) -> tuple[float, float]:
    """From one origin to the next, along and above the direction of reading."""
    x, y = character.x - before.x, character.y - before.y
    cos, sin = before.across
    return x * cos + y * sin, y * cos - x * sin


def _gap(before: Character, character: Character) -> float:
    across, _ = _offset(before, character)
    return max(across - before.advance, -across - character.advance)


def _words(line: list[Character], number: int) -> Iterator[TextWord]:
    tracking = _tracking(line)
    word: list[Character] = []
    for character in line:
        blank = not character.text or character.text.isspace()
        if word and (blank or _parts(word[-1], character, tracking)):
            yield _word(word, number)
            word = []
        if not blank:
            word.append(character)
    if word:
        yield _word(word, number)


def _tracking(line: list[Character]) -> float:
    """The gap between letters of a line that is set with space between them, or 0."""
    gaps = [_gap(before, after) for before, after in pairwise(line) if _letters(before, after)]
    if len(gaps) < _TRACKED_GAPS:
        return 0.0
    usual = median(gaps)
    return usual if max(gaps) < 1.5 * usual < line[0].size else 0.0


def _letters(before: Character, after: Character) -> bool:
    return before.text.isalpha() and after.text.isalpha()


def _parts(before: Character, after: Character, tracking: float) -> bool:
    """Whether a word ends between two characters that are no spaces."""
    if before.hidden != after.hidden:
        return True
    widest = _WORD_GAP * max(before.size, after.size)
    if _letters(before, after):
        widest = max(widest, 1.5 * tracking)
    return _gap(before, after) > widest


def _word(run: list[Character], line: int) -> TextWord:
    first = run[0]
    cos, sin = first.across
    alongs, ups = [], []
    for character in run:
        along, up = _offset(first, character)
        alongs += [along, along + character.advance]
        ups += [up - character.below, up - character.below + character.height]
    left, right, bottom, top = min(alongs), max(alongs), min(ups), max(ups)
    corners = tuple(
        (first.x + along * cos - up * sin, first.y + along * sin + up * cos)
        for along, up in ((left, top), (right, top), (right, bottom), (left, bottom))
    )
    return TextWord("".join(character.text for character in run), corners, line, first.hidden)
