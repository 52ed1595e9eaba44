"""Slow work beside the event loop, in threads that nothing waits for at the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_MAX_AT_ONCE = 4
_free = threading.BoundedSemaphore(_MAX_AT_ONCE)


async def in_thread(work: Callable[[], T]) -> T:
    """Run work that may take minutes, such as a download.

    Not in asyncio's own threads: a few silent servers would occupy those that tokenise, and the
    process would not end before the last of them has answered.
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
            with _free:
                result = work()
        except BaseException as raised:  # raised again in the task that waits
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="adapter-fetch", daemon=True).start()
    return await future
