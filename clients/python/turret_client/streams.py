"""Iterators over the events of a streamed answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import aclosing
from types import TracebackType
from typing import cast

import httpx2

from turret_client.answers import Answer
from turret_client.events import Event, EventReader, TextDelta
from turret_client.wire import transport_error

# Log-probabilities of a long prompt come as one event.
_MAX_EVENT_BYTES = 256 << 20


class Stream:
    """Events of one answer as they arrive. Leaving the `with` block early stops the server.

    Iterating raises `TurretError` where the server fails, and `ConnectionFailed` where the stream
    is cut off: an answer that ends quietly is complete.
    """

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self._reader = EventReader()
        self._events = self._read()

    def __iter__(self) -> Iterator[Event]:
        return self._events

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def request_id(self) -> str | None:
        """Names the request in the server's log."""
        return self._response.headers.get("x-request-id")

    def texts(self) -> Iterator[str]:
        """The text of the first choice, piece by piece."""
        for event in self._events:
            if isinstance(event, TextDelta) and event.index == 0:
                yield event.text

    def answer(self) -> Answer:
        """Read what is left, and return the whole answer.

        Raises:
            TurretError: it is not complete: the server failed, or the stream was closed.
        """
        for _ in self._events:
            pass
        self._reader.check_ended()
        return self._reader.answer()

    def close(self) -> None:
        """Stop; the server stops generating too."""
        self._events.close()
        self._response.close()

    def _read(self) -> Generator[Event, None, None]:
        source = httpx2.EventSource(self._response, max_event_size=_MAX_EVENT_BYTES)
        try:
            for event in source:  # to the end of the body, so that the connection can be used again
                if not self._reader.ended:
                    yield from self._reader.read(event.data)
        except httpx2.RequestError as error:
            raise transport_error(error, self._response.url) from error
        finally:
            self._response.close()
        self._reader.check_ended()


class AsyncStream:
    """As `Stream`, for `async with` and `async for`."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self._reader = EventReader()
        self._events = self._read()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._events

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def request_id(self) -> str | None:
        """Names the request in the server's log."""
        return self._response.headers.get("x-request-id")

    async def texts(self) -> AsyncIterator[str]:
        """The text of the first choice, piece by piece."""
        async for event in self._events:
            if isinstance(event, TextDelta) and event.index == 0:
                yield event.text

    async def answer(self) -> Answer:
        """Read what is left, and return the whole answer.

        Raises:
            TurretError: it is not complete: the server failed, or the stream was closed.
        """
        async for _ in self._events:
            pass
        self._reader.check_ended()
        return self._reader.answer()

    async def close(self) -> None:
        """Stop; the server stops generating too."""
        await self._events.aclose()
        await self._response.aclose()

    async def _read(self) -> AsyncGenerator[Event, None]:
        source = httpx2.EventSource(self._response, max_event_size=_MAX_EVENT_BYTES)
        try:
            async with aclosing(
                cast(AsyncGenerator[httpx2.ServerSentEvent, None], aiter(source))
            ) as data:
                async for event in data:
                    if not self._reader.ended:
                        for own in self._reader.read(event.data):
                            yield own
        except httpx2.RequestError as error:
            raise transport_error(error, self._response.url) from error
        finally:
            await self._response.aclose()
        self._reader.check_ended()
