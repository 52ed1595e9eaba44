"""The process boundary, seen from the API: starts the engine, talks to it, restarts it.

One asyncio task receives, one watches the process. When the process dies every open request gets
`EngineUnavailable` at once, the adapters that were loaded are loaded again after the restart, and
their digests stay what they were: recipes remain valid.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator
from collections.abc import Sequence as Seq
from tempfile import TemporaryDirectory

import msgspec
import zmq
import zmq.asyncio

from turret_adapters.derivation import Derivation
from turret_server import errors
from turret_server.engine import messages as m
from turret_server.engine.kept_adapters import KeptAdapters
from turret_server.engine.lifetime import environment_of_child
from turret_server.engine.settings import EngineSettings

log = logging.getLogger("turret.link")

_Result = m.AdapterInfo | m.Profiled | None
_Stream = asyncio.Queue[m.TokenEvent | None]


class EngineLink:
    """Supervises one engine process and implements `engine.client.EngineClient`.

    Args:
        settings: given to every engine started.
        hang_s: an engine that is silent for so long while it has work is killed.
    """

    def __init__(self, settings: EngineSettings, *, hang_s: float = 120.0) -> None:
        self.settings = settings
        self.ready: m.EngineReady | None = None
        self.stats = m.EngineStats()
        self.restarts = 0
        self._hang_s = hang_s
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(m.Outbound).decode
        self._decode_result = msgspec.msgpack.Decoder(m.OperationResult).decode
        self._streams: dict[str, _Stream] = {}
        self._open: dict[str, asyncio.Future[_Result]] = {}  # operations
        self._profile: asyncio.Future[_Result] | None = None  # the last one
        self._kept = KeptAdapters(self._load, self._operate)
        self._numbers = itertools.count()
        self._process: asyncio.subprocess.Process | None = None
        self._socket: zmq.asyncio.Socket | None = None
        self._operations: zmq.asyncio.Socket | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._welcoming: asyncio.Task[None] | None = None
        self._refusal: m.ErrorInfo | None = None
        self._up = asyncio.Event()
        self._is_ending = False
        self._last_message = time.monotonic()

    # ------------------------------------------------------------ life cycle

    async def start(self) -> m.EngineReady:
        """Start the engine and wait until it serves.

        Raises:
            StartupError: what the engine refuses, or that it ended before it was ready.
        """
        self._supervision = asyncio.create_task(self._supervise())
        up = asyncio.create_task(self._up.wait())
        await asyncio.wait({up, self._supervision}, return_when=asyncio.FIRST_COMPLETED)
        if self.ready is None:
            up.cancel()
            await self._supervision  # raises what went wrong
        assert self.ready is not None
        return self.ready

    async def close(self) -> None:
        """End the engine; open requests get EngineUnavailable."""
        if self._supervision:
            self._supervision.cancel()
            await asyncio.wait({self._supervision})

    def abort(self) -> None:
        """End every open request as it is, with finish_reason "abort", and accept no more."""
        self._is_ending = True
        for request_id, stream in self._streams.items():
            if self.ready is not None:
                self._cancel(request_id)
            stream.put_nowait(m.TokenEvent(id=request_id, tokens=[], finish_reason="abort"))

    async def _supervise(self) -> None:
        context = zmq.asyncio.Context()
        try:
            for attempt in itertools.count():
                began = time.monotonic()
                try:
                    # A new folder: what cleans up temporary files may have taken the last.
                    with TemporaryDirectory(prefix="turret-", ignore_cleanup_errors=True) as folder:
                        served = await self._serve_once(context, f"ipc://{folder}/engine")
                except Exception:  # no process, no file: the next attempt may have one
                    if attempt == 0:
                        raise
                    log.exception("the engine could not be started again")
                    served = False
                if not served and attempt == 0:
                    raise self._why_not_started()
                self.restarts += 1
                # A crash loop must not burn the machine.
                await asyncio.sleep(0 if time.monotonic() - began > 10 else 1)
        finally:
            context.destroy(linger=0)

    def _why_not_started(self) -> errors.TurretError:
        if self._refusal is not None:
            return self._refusal.error()
        assert self._process is not None
        assert self._process.returncode is not None
        return errors.StartupError(
            "the engine ended before it could serve",
            f"it ended with {_exit_text(self._process.returncode)}",
            "See its own messages above.",
        )

    async def _serve_once(self, context: zmq.asyncio.Context, endpoint: str) -> bool:
        """Run one engine to its end; did it ever serve?"""
        self._socket = _bind(context, endpoint)
        self._operations = _bind(context, m.operations_endpoint(endpoint))
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "turret_server.engine.process",
            endpoint,
            stdin=asyncio.subprocess.PIPE,
            # torch's own threads would spin for milliseconds after each op, on cores that the
            # native kernels and this process want.
            env={**environment_of_child(), "OMP_WAIT_POLICY": "passive", "PYTHONSAFEPATH": "1"},
        )
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(self.settings))
        self._process.stdin.close()
        self._last_message = time.monotonic()
        tasks = [
            asyncio.create_task(self._receive(self._socket)),
            asyncio.create_task(self._receive_results(self._operations)),
            asyncio.create_task(self._watch_for_hang(self._process)),
        ]
        try:
            code = await self._process.wait()
            if code == m.REFUSED:
                await tasks[0]  # the refusal was sent before the process ended
            else:
                log.error("the engine ended with %s", _exit_text(code))
        finally:
            for task in (*tasks, self._welcoming):
                if task is not None:
                    task.cancel()
            served, self.ready = self.ready is not None, None
            self.stats = m.EngineStats()
            self._up.clear()
            self._socket.close(linger=0)
            self._operations.close(linger=0)
            self._fail_open()
            if self._process.returncode is None:  # closing
                self._process.kill()
                await self._process.wait()
        return served

    async def _watch_for_hang(self, process: asyncio.subprocess.Process) -> None:
        while True:
            await asyncio.sleep(self._hang_s / 10)
            silent = time.monotonic() - self._last_message
            if self._streams and self.ready and silent > self._hang_s:
                log.error("the engine said nothing for %.0f s: killing it", silent)
                process.send_signal(signal.SIGKILL)

    # ------------------------------------------------------------ messages

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            message = self._decode(await socket.recv())
            self._last_message = time.monotonic()
            match message:
                case m.StepEvents():
                    for event in message.events:
                        if stream := self._streams.get(event.id):
                            stream.put_nowait(event)
                case m.EngineStats():
                    self.stats = message
                case m.Profiled():
                    self._settle(message.operation, message)
                case m.EngineReady():
                    self._welcoming = asyncio.create_task(self._welcome(message))
                case m.EngineRefused():
                    self._refusal = message.error
                    return

    async def _receive_results(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            message = self._decode_result(await socket.recv())
            match message:
                case m.AdapterLoaded():
                    self._settle(message.operation, message.info)
                case m.OperationDone():
                    self._settle(message.operation, None)
                case m.OperationFailed():
                    self._settle(message.operation, message.error.error())

    async def _welcome(self, ready: m.EngineReady) -> None:
        """A new engine: it has its adapters again before requests may name them."""
        try:
            await self._kept.restore()
        except Exception:  # whatever it was: an engine without them is better than none
            log.exception("adapters were not loaded again")
        self.ready = ready
        self._up.set()

    def _settle(self, operation: str, result: _Result | errors.TurretError) -> None:
        future = self._open.pop(operation, None)
        if future is None or future.done():
            return
        if isinstance(result, errors.TurretError):
            future.set_exception(result)
        else:
            future.set_result(result)

    def _check_ready(self) -> None:
        if self.ready is None:
            raise _unavailable()

    async def _send(
        self, message: m.Inbound | m.Operation, socket: zmq.asyncio.Socket | None
    ) -> None:
        if socket is None or socket.closed:
            raise _unavailable()
        await socket.send(self._encode(message))

    def _fail_open(self) -> None:
        for stream in self._streams.values():
            stream.put_nowait(None)
        for future in self._open.values():
            if not future.done():
                future.set_exception(_unavailable())
        self._open.clear()

    # ------------------------------------------------------------ EngineClient

    async def generate(self, request: m.EngineRequest) -> AsyncIterator[m.TokenEvent]:
        """See EngineClient.generate."""
        self._check_ready()
        if self._is_ending:
            raise _unavailable("the server is shutting down")
        stream: _Stream = asyncio.Queue()
        if not self._streams:
            self._last_message = time.monotonic()  # silence counts while there is work
        self._streams[request.id] = stream
        finished = False
        try:
            await self._send(request, self._socket)
            while not finished:
                event = await stream.get()
                if event is None:
                    finished = True
                    raise _unavailable("it ended while the request ran")
                if event.finish_reason == "error" and event.error is not None:
                    finished = True
                    raise event.error.error()
                finished = event.finish_reason is not None
                yield event
        finally:
            self._streams.pop(request.id, None)
            if not finished and self.ready is not None:
                # Not awaited: this also runs while the client's task is being cancelled.
                self._cancel(request.id)

    def _cancel(self, request_id: str) -> None:
        if self._socket is not None and not self._socket.closed:
            # By the asyncio socket: a send below it would take the wake-up of what has arrived.
            self._socket.send(self._encode(m.CancelRequest(request_id)))

    async def load_adapter(
        self,
        name: str,
        path: str,
        roots: Seq[str] | None = None,
        derive: Derivation | None = None,
        *,
        digest: str | None = None,
        keep: bool = True,
    ) -> m.AdapterInfo:
        """See EngineClient.load_adapter."""
        self._check_ready()
        load = m.LoadAdapter(
            operation="",
            name=name,
            path=path,
            roots=roots,
            derive=derive,
            digest=digest,
        )
        return await self._kept.load(load, keep=keep)

    async def unload_adapter(self, digest: str) -> None:
        """See EngineClient.unload_adapter."""
        self._kept.forget(digest)  # first: the next engine must not get it back
        self._check_ready()
        await self._kept.unload(digest)

    async def hold_adapters(self, digests: Seq[str]) -> None:
        """See EngineClient.hold_adapters."""
        self._check_ready()
        await self._kept.hold(digests)

    async def profile(self, steps: int, wait_s: float, *, trace: bool = False) -> m.Profiled:
        """See EngineClient.profile."""
        self._check_ready()
        if self._profile is not None and not self._profile.done():
            raise errors.Conflict(
                "the engine is being profiled",
                "one profile is taken at a time",
                "Try again when it is done.",
            )
        operation = self._operation("profile")
        self._profile = self._open[operation] = asyncio.get_running_loop().create_future()
        request = m.ProfileSteps(operation=operation, steps=steps, wait_s=wait_s, trace=trace)
        await self._send(request, self._socket)
        # Shielded: when the caller leaves, the profiler goes on until it is done.
        result = await asyncio.shield(self._profile)
        assert isinstance(result, m.Profiled)
        if result.problem:
            raise errors.TurretError(
                "the engine was not profiled", result.problem, "See the server's log."
            )
        return result

    def _operation(self, what: str) -> str:
        return f"{what}-{next(self._numbers)}"

    async def inject_fault(self, kind: str) -> None:
        """Tests only; see messages.InjectFault."""
        await self._send(m.InjectFault(kind), self._socket)

    async def _load(self, message: m.LoadAdapter) -> m.AdapterInfo:
        info = await self._operate(message)
        assert info is not None
        return info

    async def _operate(self, message: m.Operation) -> m.AdapterInfo | None:
        """Number an operation, send it, and wait for its result."""
        message = msgspec.structs.replace(message, operation=self._operation("adapter"))
        future: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        self._open[message.operation] = future
        await self._send(message, self._operations)
        result = await future
        assert not isinstance(result, m.Profiled)
        return result


def _bind(context: zmq.asyncio.Context, endpoint: str) -> zmq.asyncio.Socket:
    socket = context.socket(zmq.PAIR)
    socket.set_hwm(0)
    socket.bind(endpoint)
    return socket


def _unavailable(why: str = "it is starting") -> errors.EngineUnavailable:
    return errors.EngineUnavailable("the engine is not available", why, "Try again in a moment.")


def _exit_text(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
