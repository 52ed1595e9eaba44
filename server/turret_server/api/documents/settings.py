"""Settings of documents, frozen at start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from turret_server.pipeline.documents.ocr import PictureSettings
from turret_server.pipeline.documents.tasks import TASKS, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentSettings:
    """How documents are read, and what one may cost.

    Attributes:
        max_body_bytes: of the documents of a request, beside the rest of its body.
        max_pages: of all documents of a request.
        max_words: of one OCR result.
        max_chars: of the text of all documents of a request, laid out.
        workers: processes that read OCR results and lay pages out.
        timeout_s: of one OCR result, or of the layout of a request's pages.
        max_waiting: OCR results and layouts that may wait for a process.
        remotes: URL prefixes that documents may be fetched from.
        remote_timeout_s: of one fetch.
        pictures: how pictures and PDFs are read.
        cache_words: of pictures and PDFs that are remembered, so that each is read once.
        tasks: by name.
    """

    max_body_bytes: int = 16 << 20
    max_pages: int = 100
    max_words: int = 200_000
    max_chars: int = 2_000_000
    workers: int = 2
    timeout_s: float = 30.0
    max_waiting: int = 64
    remotes: tuple[str, ...] = ()
    remote_timeout_s: float = 30.0
    pictures: PictureSettings = field(default_factory=PictureSettings)
    cache_words: int = 50_000
    tasks: Mapping[str, Task] = field(default_factory=lambda: TASKS)
