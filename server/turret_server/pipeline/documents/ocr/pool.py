"""From the bytes of a picture or a PDF to pages, in child processes.

Decoders of pictures and PDFs are where hostile files do harm, and OCR takes a processor for
seconds. So neither runs in the server: children do it, one page at a time, with limits on time
and memory, at a lower priority, and whatever happens to a child happens to one request.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from typing import Literal, TypeAlias

from turret_server.errors import (
    BadRequest,
    Overloaded,
    PayloadTooLarge,
    Unprocessable,
)
from turret_server.pipeline.documents.ocr.children import Children
from turret_server.pipeline.documents.ocr.kinds import PDF, require_kind
from turret_server.pipeline.documents.ocr.reading import Progress, Reading
from turret_server.pipeline.documents.ocr.settings import PictureSettings
from turret_server.pipeline.documents.ocr.wire import Open
from turret_server.pipeline.documents.page import Page

Ocr: TypeAlias = Literal["auto", "always", "never"]


class PicturePool:
    """Reads pictures and PDFs. Starts no process before it is first asked to.

    Args:
        settings: limits, and the engine.

    Raises:
        StartupError: Tesseract is named, and not installed or without data for the language.
        Unprocessable: Tesseract is named, and Python packages are missing.
    """

    def __init__(self, settings: PictureSettings | None = None) -> None:
        self.settings = settings or PictureSettings()
        if self.settings.engine == "tesseract":
            _require_packages("tesseract")
            from turret_server.pipeline.documents.ocr.tesseract import require

            require(self.settings.tesseract_language)
        self._children = Children(self.settings)
        self._documents = Counter[str]()  # by owner: being read or waiting
        self._numbers = 0

    async def read(
        self,
        data: bytes,
        *,
        ocr: Ocr = "auto",
        pages: Sequence[int] | None = None,
        progress: Progress | None = None,
        owner: str = "",
    ) -> list[Page]:
        """Return the pages of a picture or PDF, with their words.

        The unit of pages is px for pictures, as displayed, and pt for PDFs. A cancelled call frees
        its place at once; its child finishes the page that it is at.

        Args:
            data: of the file; its kind is told from its first bytes.
            ocr: "auto" for pages of a PDF that carry no usable text, "always" for all, "never" to
                take the text of the PDF alone, an invisible layer of OCR included.
            pages: numbers from 1, in the order wanted; all if None.
            progress: called with the pages read so far and their total, on the event loop.
            owner: of the document; owners take turns.

        Raises:
            BadRequest: the file is damaged, no picture or PDF, or has not the pages asked for.
            Unprocessable: it is encrypted, of a kind that is not read, takes too long or too much
                memory, or the packages that read documents are not installed.
            PayloadTooLarge: it has more bytes, pixels or pages than allowed.
            Overloaded: too many documents wait.
            EngineUnavailable: the pool is closed, or its processes do not start.
        """
        kind = self._admit(data, ocr, owner)
        self._documents[owner] += 1
        self._numbers += 1
        try:
            return await Reading(
                self._children,
                self.settings,
                self._numbers,
                data,
                Open(kind, ocr),
                pages,
                progress,
                owner,
            ).run()
        finally:
            self._documents[owner] -= 1
            if not self._documents[owner]:
                del self._documents[owner]

    async def close(self) -> None:
        """End the children. What is being read fails."""
        await self._children.close()

    def _admit(self, data: bytes, ocr: str, owner: str) -> str:
        settings = self.settings
        if ocr not in ("auto", "always", "never"):
            raise BadRequest(
                f"unknown value {ocr!r} for ocr", "it is one of 'auto', 'always' and 'never'"
            )
        if len(data) > settings.max_bytes:
            raise PayloadTooLarge(
                f"the document has {len(data)} bytes",
                f"at most {settings.max_bytes} are read",
                "Send it smaller, or in parts.",
            )
        kind = require_kind(data)
        if kind != PDF and ocr == "never":
            raise BadRequest(
                "the document is a picture", "the request rules OCR out", "Set ocr to 'auto'."
            )
        _require_packages(settings.engine)
        waiting = max(self._documents.total() - settings.workers, 0)
        own, room = self._documents[owner] - settings.workers, settings.max_waiting - waiting
        # One tenant alone fills half of the queue, and whoever comes then finds room.
        if self._documents.total() >= settings.workers and (room <= 0 or (owner and own >= room)):
            raise Overloaded(
                "the server is overloaded",
                f"{waiting} documents wait to be read; {settings.max_waiting} may",
                "Try again later.",
            )
        return kind


def _require_packages(engine: str) -> None:
    packages = ["PIL", "pypdfium2", "numpy"]
    if engine == "rapidocr":
        packages += ["rapidocr", "onnxruntime"]
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise Unprocessable(
            "this server reads no pictures and PDFs",
            f"it has no {' and '.join(missing)}",
            "Install them with: pip install 'turret[documents]'. OCR results need none of it.",
        )
