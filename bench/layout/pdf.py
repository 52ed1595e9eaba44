"""A page as a PDF of one page whose words stand in their boxes, for tools that read PDFs."""

from __future__ import annotations

import math
import unicodedata
from statistics import median

from turret_server.pipeline.documents.page import Page, Word, upright

_WORD_PT = 10.0  # height of the page's median word, as print has it: tools have absolute limits
_DESCENT = 0.2
_FAR = 0.6  # a gap of so many heights is no space


def to_pdf(page: Page) -> bytes:
    """The page; every character is 0.5 em wide, and words are stretched to their boxes."""
    heights = [math.dist(word.quad[0:2], word.quad[6:8]) for word in page.words]
    scale = _WORD_PT / median(heights) if heights else 1.0
    codes: dict[str, int] = {}
    drawn = [
        _draw(word, page.height, scale, codes)
        for pair in zip(page.words, [*page.words[1:], None], strict=True)
        for word in (pair[0], _space(*pair))
        if word is not None
    ]
    content = "BT\n" + "\n".join(drawn) + "\nET\n"
    width, height = page.width * scale, page.height * scale
    font = "/Type /Font /Subtype /Type0 /BaseFont /Helvetica /Encoding /Identity-H"
    descendant = "/Type /Font /Subtype /CIDFontType2 /BaseFont /Helvetica /DW 500"
    descriptor = "/Type /FontDescriptor /FontName /Helvetica /Flags 32 /ItalicAngle 0 /StemV 80"
    descriptor += " /Ascent 800 /Descent -200 /CapHeight 700 /FontBBox [0 -200 1000 800]"
    bodies = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width:.3f} {height:.3f}] /Contents 4 0 R "
        "/Resources << /Font << /F 5 0 R >> >> >>".encode(),
        _stream(content),
        f"<< {font} /DescendantFonts [6 0 R] /ToUnicode 8 0 R >>".encode(),
        f"<< {descendant} /CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >>"
        " /FontDescriptor 7 0 R >>".encode(),
        f"<< {descriptor} >>".encode(),
        _stream(_to_unicode(codes)),
    ]
    return _file(bodies)


def _space(word: Word, after: Word | None) -> Word | None:
    """The space between two words of a line, as PDFs hold it, unless they are far apart."""
    if after is None or after.line != word.line:
        return None
    first, second = sorted((word.box, after.box))
    gap, height = second[0] - first[2], word.box[3] - word.box[1]
    if not 0 < gap < _FAR * height:
        return None
    return Word(" ", upright(first[2], word.box[1], second[0], word.box[3]))


def _draw(word: Word, page_height: float, scale: float, codes: dict[str, int]) -> str:
    """Operators that set a word's text in its quad."""
    x0, y0, x1, y1, _, _, x3, y3 = word.quad
    width, height = math.dist((x0, y0), (x1, y1)), math.dist((x0, y0), (x3, y3))
    size = max(height * scale, 0.1)
    cos, sin = ((x1 - x0) / width, (y1 - y0) / width) if width else (1.0, 0.0)
    # PDFs hold what is seen from left to right, so Hebrew backwards.
    right_to_left = any(unicodedata.bidirectional(char) in ("R", "AL") for char in word.text)
    text = word.text[::-1] if right_to_left else word.text
    stretch = 100 * width * scale / (0.5 * size * len(text))
    # From the lower left corner up to the baseline; y grows upwards in PDFs.
    x = (x3 + sin * _DESCENT * height) * scale
    y = (page_height - (y3 - cos * _DESCENT * height)) * scale
    shown = "".join(f"{codes.setdefault(char, len(codes) + 1):04x}" for char in text)
    return (
        f"/F {size:.3f} Tf {max(stretch, 1.0):.3f} Tz "
        f"{cos:.5f} {-sin:.5f} {sin:.5f} {cos:.5f} {x:.3f} {y:.3f} Tm <{shown}> Tj"
    )


def _to_unicode(codes: dict[str, int]) -> str:
    rows = [f"<{code:04x}> <{char.encode('utf-16-be').hex()}>" for char, code in codes.items()]
    parts = [rows[i : i + 100] for i in range(0, len(rows), 100)]
    maps = "".join(
        f"{len(part)} beginbfchar\n" + "\n".join(part) + "\nendbfchar\n" for part in parts
    )
    return (
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /U def "
        "/CMapType 2 def 1 begincodespacerange <0000> <ffff> endcodespacerange\n"
        f"{maps}endcmap end end\n"
    )


def _stream(text: str) -> bytes:
    data = text.encode()
    return b"<< /Length %d >>\nstream\n%s\nendstream" % (len(data), data)


def _file(bodies: list[bytes]) -> bytes:
    data = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(bodies, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(bodies) + 1
    return data + (
        b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n"
        b"%%%%EOF\n" % (size, table, size, len(data))
    )
