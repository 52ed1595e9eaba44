"""Reads the pages of one document after another, in a child."""

from __future__ import annotations

from typing import Protocol

from turret_server.pipeline.documents.ocr.kinds import PDF
from turret_server.pipeline.documents.ocr.picture import Picture
from turret_server.pipeline.documents.ocr.recognizer import recognizer
from turret_server.pipeline.documents.ocr.settings import PictureSettings
from turret_server.pipeline.documents.page import Page


class Document(Protocol):
    """A picture or a PDF."""

    @property
    def pages(self) -> int:
        """How many there are."""
        ...

    def read(self, number: int) -> Page:
        """The words of a page, counted from 1."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class Reader:
    """Holds the document that is being read, and the models of the OCR.

    Attributes:
        settings: limits.
    """

    def __init__(self, settings: PictureSettings) -> None:
        self.settings = settings
        self._recognize = recognizer(settings)
        self._document: Document | None = None

    def open(self, data: bytes, kind: str, ocr: str) -> int:
        """Take a document up in place of the one before, and return its number of pages."""
        if self._document is not None:
            self._document.close()
            self._document = None
        if kind == PDF:
            from turret_server.pipeline.documents.ocr.pdf import Pdf

            self._document = Pdf(data, ocr, self._recognize, self.settings)
        else:
            self._document = Picture(data, kind, self._recognize, self.settings)
        return self._document.pages

    def read(self, number: int) -> Page:
        """Read one of its pages."""
        assert self._document is not None
        return self._document.read(number)
