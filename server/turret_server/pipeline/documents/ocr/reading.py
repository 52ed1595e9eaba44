"""One document on its way through the children."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from turret_server.errors import BadRequest, PayloadTooLarge, Unprocessable
from turret_server.pipeline.documents.ocr.child import Child
from turret_server.pipeline.documents.ocr.children import Children
from turret_server.pipeline.documents.ocr.settings import PictureSettings
from turret_server.pipeline.documents.ocr.wire import Open
from turret_server.pipeline.documents.page import Page

Progress: TypeAlias = Callable[[int, int], None]

_ALONE_S = 0.25  # a document that takes longer has other children join
_SLICE_S = 1.0  # after which a child turns to another document, if one waits


class Reading:
    """Reads the pages of one document, on as many children as there are.

    Args:
        children: lend processes.
        settings: limits.
        number: of the document, unlike that of any other.
        data: its bytes.
        request: opens it on a child.
        pages: numbers from 1; all if None.
        progress: called with the pages read and their total.
        owner: of the document, for its turn.
    """

    def __init__(
        self,
        children: Children,
        settings: PictureSettings,
        number: int,
        data: bytes,
        request: Open,
        pages: Sequence[int] | None,
        progress: Progress | None,
        owner: str,
    ) -> None:
        self._children = children
        self._settings = settings
        self._number = number
        self._data = data
        self._request = request
        self._pages = pages
        self._progress = progress
        self._owner = owner
        self._opened = asyncio.Event()
        self._wanted: list[int] = []
        self._todo: deque[int] = deque()
        self._done: dict[int, Page] = {}
        self._deadline = asyncio.timeout(None)  # of the document, from when it is opened

    async def run(self) -> list[Page]:
        """Return the pages in the order asked for.

        Raises:
            BadRequest: the document cannot be read, or has not these pages.
            PayloadTooLarge: it has too many.
        """
        try:
            async with self._deadline:
                return await self._run()
        except TimeoutError:
            raise Unprocessable(
                "the document could not be read",
                f"its {len(self._wanted)} pages take more than "
                f"{self._settings.document_timeout_s:g} s; {len(self._done)} are read",
                "Send it in parts, or have the server's limit raised.",
            ) from None

    async def _run(self) -> list[Page]:
        tasks = {asyncio.create_task(self._work())}
        tasks |= {asyncio.create_task(self._join()) for _ in range(self._settings.workers - 1)}
        pending = tasks
        try:
            while not self._opened.is_set() or len(self._done) < len(self._wanted):
                ended, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [self._done[number] for number in self._wanted]

    async def _join(self) -> None:
        await self._opened.wait()
        if len(self._wanted) > 1:
            await asyncio.sleep(_ALONE_S)
            await self._work()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._todo or not self._opened.is_set():
            async with self._children.lend(self._number, self._owner) as child:
                began = loop.time()
                await self._open_on(child)
                while self._todo:
                    await self._read_next(child)
                    if self._children.waiting and loop.time() - began > _SLICE_S:
                        break

    async def _open_on(self, child: Child) -> None:
        if child.document != self._number:
            opened = await child.open(self._request, self._data, self._number)
            if not self._opened.is_set():
                self._wanted = self._select(opened.pages)
                self._todo.extend(self._wanted)
                self._opened.set()
                self._deadline.reschedule(
                    asyncio.get_running_loop().time() + self._settings.document_timeout_s
                )

    async def _read_next(self, child: Child) -> None:
        number = self._todo.popleft()
        self._done[number] = await child.read(number)
        if self._progress is not None:
            self._progress(len(self._done), len(self._wanted))

    def _select(self, count: int) -> list[int]:
        # A range, and no list yet: a file may claim any number of pages.
        wanted = range(1, count + 1) if self._pages is None else list(dict.fromkeys(self._pages))
        most = self._settings.max_pages
        if not wanted:
            raise BadRequest("no page is asked for", "the list of pages is empty")
        if len(wanted) > most:
            raise PayloadTooLarge(
                f"{len(wanted)} pages are to be read",
                f"at most {most} are read at once",
                "Name the pages you need, or split the document.",
            )
        for number in wanted:
            if not 1 <= number <= count:
                raise BadRequest(
                    f"the document has no page {number}",
                    f"its pages are numbered from 1 to {count}",
                    param="pages",
                )
        return list(wanted)
