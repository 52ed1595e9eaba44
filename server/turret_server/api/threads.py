"""Slow work beside the event loop, in threads where it makes nothing else wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

# What may take a tenth of a second or more, as often as anybody asks, has threads of its own: in
# asyncio's it would keep every prompt waiting. Grammars are compiled one at a time in any case.
GRAMMARS = ThreadPoolExecutor(1, "grammars")
LONG_TEXTS = ThreadPoolExecutor(2, "long-texts")

_LONG_CHARS = 200_000

# How many are at work at once. Each has its own, or no key could be revoked while four slow servers
# keep a download each.
DOWNLOADS = threading.BoundedSemaphore(4)
QUERIES = threading.BoundedSemaphore(4)


def threads_for(num_chars: int) -> ThreadPoolExecutor | None:
    """Where work on so many characters is done; None means asyncio's own threads."""
    return LONG_TEXTS if num_chars > _LONG_CHARS else None


async def in_thread(work: Callable[[], T], places: threading.BoundedSemaphore = DOWNLOADS) -> T:
    """Run work that may take minutes, such as a download.

    Not in asyncio's own threads: a few silent servers would occupy those that tokenise, and the
    process would not end before the last of them has answered.

    Args:
        work: its result is returned, its error raised.
        places: of which it takes one, or waits for one.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # pyright: ignore[reportArgumentType]

    def run() -> None:
        result = error = None
        try:
            with places:
                result = work()
        except BaseException as raised:  # raised again in the task that waits
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="slow-work", daemon=True).start()
    return await future
