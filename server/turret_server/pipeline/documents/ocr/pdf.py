"""Reads PDFs: the text that they carry, or OCR of the page as it is rendered."""

from __future__ import annotations

import math

import numpy as np
import pypdfium2 as pdfium
import pypdfium2.raw as raw

from turret_server.errors import BadRequest, Unprocessable
from turret_server.pipeline.documents.ocr.pdf_text import Character, characters, words
from turret_server.pipeline.documents.ocr.pdf_ticks import Displayed, Tick, marked, ticks
from turret_server.pipeline.documents.ocr.recognizer import Pixels, Recognizer
from turret_server.pipeline.documents.ocr.settings import PictureSettings
from turret_server.pipeline.documents.page import Page, Quad, Word

_RENDER_PIXELS = 9_000_000  # of a page; larger ones are rendered coarser
_FEW_CHARS = 100  # on a scan: a stamp or a page number
_SCAN_SHARE = 0.5  # of the page, that a picture covers
_UNUSABLE_SHARE = 0.2  # of characters that the fonts do not name
_POINTS_PER_INCH = 72


class Pdf:
    """A PDF.

    Args:
        data: of the file.
        ocr: "auto", "always" or "never".
        recognize: reads text in pictures.
        settings: limits.

    Raises:
        BadRequest: it is damaged or has no pages.
        Unprocessable: it is encrypted.
    """

    def __init__(
        self, data: bytes, ocr: str, recognize: Recognizer, settings: PictureSettings
    ) -> None:
        self._ocr = ocr
        self._recognize = recognize
        self._dpi = settings.dpi
        self._ticks: dict[int, list[Tick]] = {}  # of pages whose forms were merged into them
        try:
            self._pdf = pdfium.PdfDocument(data)
            self._pdf.init_forms()
            self.pages = len(self._pdf)
        except pdfium.PdfiumError as error:
            if error.err_code in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
                raise Unprocessable(
                    "the PDF is encrypted",
                    "it opens with a password only",
                    "Save it without one.",
                ) from None
            raise BadRequest(
                "the PDF cannot be opened",
                "it is damaged or cut off",
                "Save it anew, and send all of its bytes.",
            ) from None
        if not self.pages:
            raise BadRequest("the PDF has no pages")

    def read(self, number: int) -> Page:
        """Return the words of a page, in points from its top left corner as it is displayed."""
        try:
            page = self._page(number)
            try:
                return self._read(page, number)
            finally:
                page.close()
        except pdfium.PdfiumError:
            raise _damaged(number) from None

    def close(self) -> None:
        """Free it."""
        self._pdf.close()

    def _page(self, number: int) -> pdfium.PdfPage:
        page = self._pdf[number - 1]
        if raw.FPDFPage_GetAnnotCount(page) > 0:
            if self._pdf.formenv is not None:
                self._ticks[number] = ticks(page, self._pdf.formenv)
            # Filled-in forms and notes are no text of the page before they are merged into it.
            raw.FPDFPage_Flatten(page, raw.FLAT_NORMALDISPLAY)
            page.close()
            page = self._pdf[number - 1]
        return page

    def _read(self, page: pdfium.PdfPage, number: int) -> Page:
        width, height = page.get_size()
        if not (width > 0 and height > 0 and math.isfinite(width * height)):
            raise _damaged(number)
        found = None
        if self._ocr != "always":
            text = characters(page)
            if self._ocr == "never" or _is_usable(page, text, width * height):
                found = _words(page, text, width, height, hidden=self._ocr == "never")
        if found is None:
            found = self._recognized(page, width, height)
        if boxes := self._ticks.get(number):
            found = marked(found, boxes, _display(page), (width, height))
        return Page(found, width, height, number, "pt")

    def _recognized(self, page: pdfium.PdfPage, width: float, height: float) -> list[Word]:
        scale = self._dpi / _POINTS_PER_INCH
        scale = min(scale, math.sqrt(_RENDER_PIXELS / (width * height)))
        bitmap = page.render(scale=scale)  # pyright: ignore[reportArgumentType] (a float is right)
        try:
            pixels: Pixels = np.array(bitmap.to_numpy()[:, :, :3])
        finally:
            bitmap.close()
        x, y = width / pixels.shape[1], height / pixels.shape[0]
        return [_scaled(word, x, y) for word in self._recognize(pixels)]


def _damaged(number: int) -> BadRequest:
    return BadRequest(
        f"page {number} of the PDF cannot be read", "it is damaged", "Save the file anew."
    )


def _is_usable(page: pdfium.PdfPage, text: list[Character], area: float) -> bool:
    """Whether the text of a page says what the page shows."""
    visible = [character for character in text if not character.hidden]
    printed = [character for character in visible if not character.text.isspace()]
    if not printed:
        return next(page.get_objects(), None) is None and not text
    unknown = sum(not character.text for character in printed)
    if unknown > _UNUSABLE_SHARE * len(printed):
        return False
    if len(printed) >= _FEW_CHARS:
        return True
    return all(
        _area(image) < _SCAN_SHARE * area
        for image in page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE])
    )


def _area(image: pdfium.PdfObject) -> float:
    left, bottom, right, top = image.get_bounds()
    return (right - left) * (top - bottom)


def _display(page: pdfium.PdfPage) -> Displayed:
    """Where points of the page are displayed, from its top left corner."""
    left, bottom, right, top = page.get_bbox()
    rotation = page.get_rotation()

    def displayed(x: float, y: float) -> tuple[float, float]:
        match rotation:
            case 90:
                return y - bottom, x - left
            case 180:
                return right - x, y - bottom
            case 270:
                return top - y, right - x
            case _:
                return x - left, top - y

    return displayed


def _words(
    page: pdfium.PdfPage, text: list[Character], width: float, height: float, *, hidden: bool
) -> list[Word]:
    """Words on the page, with `hidden` those that are not painted as well."""
    displayed = _display(page)
    found = []
    for word in words(text):
        if word.hidden and not hidden:
            continue
        points = [displayed(x, y) for x, y in word.corners]
        middle_x = sum(x for x, _ in points) / 4
        middle_y = sum(y for _, y in points) / 4
        if 0 <= middle_x <= width and 0 <= middle_y <= height:
            (a, b), (c, d), (e, f), (g, h) = points
            found.append(Word(word.text, (a, b, c, d, e, f, g, h), line=word.line))
    return found


def _scaled(word: Word, x: float, y: float) -> Word:
    a, b, c, d, e, f, g, h = word.quad
    quad: Quad = a * x, b * y, c * x, d * y, e * x, f * y, g * x, h * y
    return Word(word.text, quad, word.confidence, word.line, word.block)
