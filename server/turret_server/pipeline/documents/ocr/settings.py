"""What reading pictures and PDFs may cost."""

from __future__ import annotations

import os
from typing import Literal

import msgspec

from turret_server.errors import StartupError

_MAX_FRAME_BYTES = 2**32 - 1  # what the pipe to a child can carry
_DAY_S = 86_400.0


def _workers() -> int:
    return min(max((os.cpu_count() or 1) // 2, 1), 4)


class PictureSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the picture pool, and how it reads.

    Attributes:
        engine: what recognises text in pictures.
        tesseract_language: of Tesseract, such as "eng" or "eng+deu".
        workers: child processes, each with one thread and one page at a time. By default half as
            many as there are processors, 4 at most: the rest is for the engine.
        niceness: of the children, above the server's own; 19 leaves them what nobody else wants.
        max_waiting: documents that may wait beyond those that the children can work on.
        max_bytes: of a picture or PDF.
        max_pages: that one request may ask for.
        max_pixels: of a picture, checked before it is decoded; takes up to 24 bytes each.
        dpi: at which pages of a PDF are rendered for OCR.
        min_confidence: of a word, 0 to 1; what is below is dropped.
        page_timeout_s: of one page, on a child; OCR of a full one takes some 4 s, or many times
            that while the engine takes the processors.
        document_timeout_s: from when a document's first page is begun.
        memory_mib: that a child may allocate, where the system can limit it.
        idle_s: after which an unused child is ended.

    Raises:
        StartupError: a value is out of range.
    """

    engine: Literal["rapidocr", "tesseract"] = "rapidocr"
    tesseract_language: str = "eng"
    workers: int = msgspec.field(default_factory=_workers)
    niceness: int = 19
    max_waiting: int = 16
    max_bytes: int = 32 * 2**20
    max_pages: int = 100
    max_pixels: int = 50_000_000
    dpi: int = 150
    min_confidence: float = 0.5
    page_timeout_s: float = 120.0
    document_timeout_s: float = 600.0
    memory_mib: int = 2048
    idle_s: float = 300.0

    def __post_init__(self) -> None:
        """Check ranges."""
        ranges: dict[str, tuple[float, float]] = {
            "workers": (1, 256),
            "niceness": (0, 19),
            "max_waiting": (0, 100_000),
            "max_bytes": (1, _MAX_FRAME_BYTES),
            "max_pages": (1, 100_000),
            "max_pixels": (1, 1_000_000_000),
            "dpi": (50, 600),
            "min_confidence": (0, 1),
            "page_timeout_s": (0.01, _DAY_S),
            "document_timeout_s": (0.01, _DAY_S),
            "memory_mib": (256, 2**20),
            "idle_s": (0, _DAY_S),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise StartupError(
                    f"the setting {name} of documents is {value!r}",
                    f"it must lie between {least} and {most}",
                )
