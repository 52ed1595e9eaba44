"""uvicorn with a life of its own: says where it listens, reloads on SIGHUP, drains on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator

import uvicorn
from fastapi import FastAPI
from rich.console import Console

from turret_server.api.service import Service
from turret_server.engine.link import EngineLink
from turret_server.errors import StartupError, TurretError
from turret_server.http_protocol import BoundedProtocol

_MAX_HEADER_BYTES = 64 << 10
_ABORT_S = 2.0  # for answers that were cut short to reach their clients


class HttpServer(uvicorn.Server):
    """Serves an app until SIGTERM or SIGINT, and then what is in flight.

    Args:
        app: made by `create_app`.
        link: its engine.
        drain_s: what open requests get at the end; a second signal cuts it short.
        console: where people are told.
        announcement: what is served.
        reload: on SIGHUP; None leaves that signal as it is.
    """

    def __init__(
        self,
        app: FastAPI,
        link: EngineLink,
        *,
        drain_s: float,
        console: Console,
        announcement: str,
        reload: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                # Upon h11, which bounds the header; the faster parser takes any length.
                http=BoundedProtocol,
                ws="none",  # there is none, whatever else is installed
                h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
                log_level="warning",
                log_config=None,  # see configure_logging
                access_log=False,
                timeout_graceful_shutdown=1,  # what is open then has had its time
                server_header=False,
            )
        )
        self._service: Service = app.state.service
        self._link, self._drain_s = link, drain_s
        self._console, self._announcement = console, announcement
        self._reload = reload
        self._hurry = asyncio.Event()
        self._reloads: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signal again at the end, before the engine could be closed."""
        loop = asyncio.get_running_loop()
        handlers: dict[int, Callable[[], None]] = {
            signal.SIGINT: self._end,
            signal.SIGTERM: self._end,
        }
        if self._reload is not None:
            handlers[signal.SIGHUP] = self._reload_soon
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where: port 0 is resolved by then."""
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            self._console.print(
                f"{self._announcement}\nlistening on http://{shown}:{port}", soft_wrap=True
            )
            notify("READY=1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, and close.

        The socket listens meanwhile: who has not noticed gets a 503 with Retry-After, which
        clients obey, and no refused connection.
        """
        notify("STOPPING=1")
        if in_flight := set(self.server_state.tasks):
            ended, hurry = (
                asyncio.create_task(asyncio.wait(in_flight)),
                asyncio.create_task(self._hurry.wait()),
            )
            await asyncio.wait(
                {ended, hurry}, timeout=self._drain_s, return_when=asyncio.FIRST_COMPLETED
            )
            ended.cancel()
            hurry.cancel()
            self._link.abort()
            await asyncio.wait(in_flight, timeout=_ABORT_S)
        await super().shutdown(sockets)

    def _end(self) -> None:
        if self.should_exit:
            self._hurry.set()
        self._service.admission.draining = True
        self.should_exit = True

    def _reload_soon(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload_now())
        self._reloads.add(task)  # the loop itself keeps weak references only
        task.add_done_callback(self._reloads.discard)

    async def _reload_now(self) -> None:
        assert self._reload is not None
        with contextlib.suppress(TurretError):  # it is in the log
            await self._reload()


def bind(host: str, port: int) -> socket.socket:
    """A socket with its address; it listens once the model can answer.

    Raises:
        StartupError: the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise StartupError(
            f"the server cannot listen on {host} port {port}",
            error.strerror or str(error),
            "Choose another --host or --port; --port 0 takes a free one.",
        ) from error
    return listener


def notify(state: str) -> None:
    """Tell systemd, where it started the server with Type=notify (sd_notify(3))."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            to.send(state.encode())
