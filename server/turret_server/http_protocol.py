"""HTTP/1.1 as uvicorn speaks it, for clients that do not keep their side of it.

uvicorn ends connections that are idle between two requests, and no others: half a header, or a
client that never reads its answer, would hold a connection for ever.
"""

from __future__ import annotations

import asyncio
import sys
from http import HTTPStatus

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from turret_server.api.error_responses import error_body
from turret_server.errors import BadRequest, HeaderTooLarge, RequestTimeout, TurretError


class _Connection(h11.Connection):
    """Refuses bodies in crumbs: a chunk costs ten microseconds, however little it brings."""

    _FREE, _LEAST_BYTES = 1024, 64  # chunks of any size; of those beyond, on average

    _chunks = _bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """As h11's."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_end
            self._bytes += len(event.data)
            if self._chunks > self._FREE + self._bytes // self._LEAST_BYTES:
                raise h11.RemoteProtocolError(f"its {self._chunks} chunks hold {self._bytes} bytes")
        return event


class BoundedProtocol(H11Protocol):
    """A connection whose header must come, and whose answer must be read, in good time.

    Attributes:
        HEAD_S: seconds that a header may take from its first byte, and a first one at all.
        STALL_S: seconds that a client may read nothing of what is ready for it.
    """

    HEAD_S = 20.0
    STALL_S = 120.0

    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there; its first header is awaited."""
        most = self.config.h11_max_incomplete_event_size
        assert most is not None, "see http_server"
        self.conn = _Connection(h11.SERVER, most)
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """More of a header, or of a body."""
        super().data_received(data)
        self._await_head()

    def on_response_complete(self) -> None:
        """An answer is out; what came meanwhile may be the beginning of the next request."""
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._await_head()

    def pause_writing(self) -> None:
        """The client is slower than the answer."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(self.STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the form of all our errors."""
        cause = sys.exception()
        hint = cause.error_status_hint if isinstance(cause, h11.RemoteProtocolError) else 400
        if hint == HeaderTooLarge.status:
            self._refuse(HeaderTooLarge("the header of the request is too long", str(cause)))
        else:
            self._refuse(BadRequest("the request is not valid HTTP", str(cause or msg)))

    def _await_head(self) -> None:
        """Limit the time of a header that is not there yet; the timer of one that is ends."""
        if self.conn.their_state is not h11.IDLE:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.HEAD_S, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if not self.conn.trailing_data[0]:
            self.transport.close()  # it has said nothing, and is told nothing
            return
        self._refuse(
            RequestTimeout(
                "the header of the request did not come",
                f"it may take {self.HEAD_S:g} seconds",
                "Send it at once, or look for a proxy that holds it back.",
            )
        )

    def _refuse(self, error: TurretError) -> None:
        """Answer, and close: nothing that follows could be understood."""
        body = msgspec.json.encode(error_body(error))
        phrase = HTTPStatus(error.status).phrase
        self.transport.write(
            f"HTTP/1.1 {error.status} {phrase}\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        self.transport.close()
