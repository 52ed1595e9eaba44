"""Documents of requests, read and laid out: from a part of a body to pages and their text."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from turret_server.api.documents.cache import ReadCache
from turret_server.api.documents.input import DocumentInput
from turret_server.api.documents.settings import DocumentSettings
from turret_server.api.schema.documents import ReadingFields
from turret_server.errors import BadRequest, PayloadTooLarge, TurretError
from turret_server.pipeline.documents.layout import LayoutOptions, PageText
from turret_server.pipeline.documents.ocr import PicturePool
from turret_server.pipeline.documents.page import Page
from turret_server.pipeline.documents.readers import ReadLimits
from turret_server.pipeline.documents.sources import LAYOUTS, chosen, is_file
from turret_server.pipeline.documents.workers import DocumentWorkers
from turret_server.sources.web import Web, WebLimits
from turret_server.telemetry.document_metrics import DocumentMetrics

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReadDocument:
    """A document: its pages, and the text of each."""

    pages: list[Page]
    texts: list[PageText]


class DocumentReader:
    """Reads the documents of one server's requests.

    Args:
        settings: limits, and how to read.
        metrics: count what is read.
    """

    def __init__(self, settings: DocumentSettings, metrics: DocumentMetrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self._workers = DocumentWorkers(
            settings.workers,
            settings.timeout_s,
            settings.max_waiting,
            ReadLimits(
                max_bytes=settings.max_body_bytes,
                max_pages=settings.max_pages,
                max_words=settings.max_words,
            ),
            settings.max_chars,
        )
        self._pictures = PicturePool(settings.pictures)
        self._cache = ReadCache(settings.cache_words)
        self._web = Web(
            settings.remotes, WebLimits(settings.max_body_bytes, settings.remote_timeout_s)
        )

    async def read(
        self, inputs: Sequence[DocumentInput], fields: ReadingFields, namespace: str
    ) -> list[ReadDocument]:
        """Read documents and lay their pages out, in the order given.

        Args:
            inputs: the documents.
            fields: how to read them and lay them out.
            namespace: files are read anew for every one, and they take turns.

        Raises:
            BadRequest, Unprocessable, PayloadTooLarge: one cannot be read; `param` names it.
            Overloaded: too many wait to be read.
            FetchFailed: one cannot be fetched.
        """
        if fields.pages is not None and len(inputs) > 1:
            raise BadRequest(
                "'pages' cannot be used here",
                f"the request has {len(inputs)} documents, and it would mean the pages of each",
                "Send one document, or only the pages to read.",
                param="pages",
            )
        self._check_count(len(inputs))
        documents: list[list[Page]] = []
        # As many at once as can be read at once: one request must not fill the queue alone.
        step = self.settings.pictures.workers
        for at in range(0, len(inputs), step):
            some = inputs[at : at + step]
            documents += await _all([self._pages(one, fields, namespace) for one in some])
            self._check_count(sum(map(len, documents)))
        everything = [page for pages in documents for page in pages]
        options = LayoutOptions(mode=LAYOUTS[fields.mode or "turret"])
        try:
            texts = iter(await self._workers.lay_out(everything, options, namespace))
        except TurretError as error:
            error.param = inputs[0].where
            raise
        return [ReadDocument(pages, [next(texts) for _ in pages]) for pages in documents]

    async def close(self) -> None:
        """End the processes that read."""
        await self._workers.close()
        await self._pictures.close()

    def _check_count(self, pages: int) -> None:
        if pages > self.settings.max_pages:
            raise PayloadTooLarge(
                f"the documents have {pages} pages or more",
                f"at most {self.settings.max_pages} are read for one request",
                "Send fewer, name those to read in 'pages', or raise --document-pages.",
            )

    async def _pages(
        self, document: DocumentInput, fields: ReadingFields, namespace: str
    ) -> list[Page]:
        try:
            if document.url is None:
                data = await document.data()
            else:
                data = await self._web.fetch(document.url)
            kind = "file" if is_file(data) else "ocr_result"
            with self.metrics.reading(kind):
                if kind == "file":
                    pages = await self._read_file(data, document, fields, namespace)
                else:
                    named = document.format or fields.format
                    pages = chosen(await self._workers.read(data, named, namespace), fields.pages)
        except TurretError as error:
            error.param = error.param or document.where
            raise
        self.metrics.pages(kind, len(pages))
        return pages

    async def _read_file(
        self, data: bytes, document: DocumentInput, fields: ReadingFields, namespace: str
    ) -> list[Page]:
        if document.format is not None:
            raise BadRequest(
                f"the document is not of the format {document.format!r}",
                "it is a file, not an OCR result",
                "Leave out 'format': the kind of a file is told from its content.",
            )
        ocr, numbers = fields.ocr or "auto", fields.pages
        key = await asyncio.to_thread(ReadCache.key, namespace, data, ocr, numbers)
        if (pages := self._cache.get(key)) is None:
            pages = await self._pictures.read(data, ocr=ocr, pages=numbers, owner=namespace)
            self._cache.put(key, pages)
        return pages


async def _all(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all; the first that fails ends the others."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
