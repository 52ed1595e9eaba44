"""The engine process: `python -m turret_server.engine.process ENDPOINT` with settings on stdin.

One thread steps, one loads adapters, one hears what to load. With `tensor_parallel` it is rank 0:
`followers.py` starts the others and tells them of every step. Messages arrive and leave on two
private Unix sockets, so that a load waits for no step; the process dies with its parent.
"""

from __future__ import annotations

import gc
import logging
import os
import queue
import sys
import threading
import time
from pathlib import Path

import msgspec
import zmq

from turret_adapters.errors import AdapterError
from turret_server.engine import messages as m
from turret_server.engine.core import Engine
from turret_server.engine.device import use_threads
from turret_server.engine.lifetime import die_with_parent
from turret_server.engine.profiler import StepProfiler, not_profiled
from turret_server.engine.settings import EngineSettings
from turret_server.engine.stores import Loaded, adapter_error
from turret_server.engine.warm_up import warm_up
from turret_server.errors import StartupError

log = logging.getLogger("turret.engine")

_STATS_INTERVAL_S = 0.25


def main() -> None:
    """Serve until the parent goes away."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    die_with_parent()
    endpoint = sys.argv[1]
    settings = msgspec.json.decode(sys.stdin.buffer.read(), type=EngineSettings)
    EngineProcess(settings, endpoint).run()


class EngineProcess:
    """The loop around the engine: messages in, steps, messages out."""

    def __init__(self, settings: EngineSettings, endpoint: str) -> None:
        use_threads(settings)
        self._context = zmq.Context()
        self._socket = self._connect(endpoint)
        self._operations = self._connect(m.operations_endpoint(endpoint))
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(m.Inbound).decode
        self._wake_in = self._context.socket(zmq.PAIR)
        self._wake_in.bind("inproc://wake")
        self._wake_out = self._context.socket(zmq.PAIR)
        self._wake_out.connect("inproc://wake")
        self._wake_lock = threading.Lock()
        try:
            folder = Path(endpoint.removeprefix("ipc://")).parent  # the supervisor removes it
            self._engine = Engine(settings, self._wake, _log_progress(), folder)
        except StartupError as error:
            info = m.ErrorInfo("StartupError", error.what, error.why, error.fix)
            self._send(m.EngineRefused(info))
            self._context.destroy(linger=5000)  # not before it is on its way
            sys.exit(m.REFUSED)
        self._folder = folder
        self._profiler: StepProfiler | None = None
        self._profiled: queue.SimpleQueue[m.Profiled] = queue.SimpleQueue()
        self._last_stats: m.EngineStats | None = None
        self._stats_due = 0.0

    def run(self) -> None:
        """Serve for ever; an exception ends the process and the supervisor starts another."""
        threading.Thread(target=self._operate, name="operations", daemon=True).start()
        if self._engine.followers is not None:
            watch = self._engine.followers.end_with_them
            threading.Thread(target=watch, name="followers", daemon=True).start()
        if self._engine.decoder.device.type == "cuda":
            warm_up(self._engine)
        self._send(self._engine.ready)
        # What exists now lives for ever: keep it out of the collector's way.
        gc.collect()
        gc.freeze()
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_in, zmq.POLLIN)
        blocked = False
        while True:
            if self._engine.idle or blocked:
                self._report_stats()
                poller.poll(250 if self._engine.idle else 5)
            events = self._drain()
            events += self._engine.step()
            if self._profiler is not None and self._profiler.after_step(self._engine.steps):
                self._profiler = None
            if events:
                self._send(m.StepEvents(events))
            blocked = not events and not self._engine.scheduler.running
            if time.monotonic() > self._stats_due:
                self._report_stats()

    def _drain(self) -> list[m.TokenEvent]:
        """Take every message that has arrived."""
        refused: list[m.TokenEvent] = []
        while self._wake_in.poll(0):
            self._wake_in.recv(zmq.NOBLOCK)
        while not self._profiled.empty():
            self._send(self._profiled.get())
        while True:
            try:
                message = self._decode(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return refused
            match message:
                case m.EngineRequest():
                    if event := self._engine.submit(message):
                        refused.append(event)
                case m.CancelRequest():
                    self._engine.cancel(message.id)
                case m.ProfileSteps():
                    self._profile(message)
                case m.InjectFault():
                    self._fault(message.kind)

    def _operate(self) -> None:
        """Load, unload and hold adapters, one after another; in a thread of its own."""
        decode = msgspec.msgpack.Decoder(m.Operation).decode
        encode = msgspec.msgpack.Encoder().encode
        try:
            while True:
                message = decode(self._operations.recv())
                self._operations.send(encode(self._result(message)))
        except BaseException:  # the supervisor starts an engine that works
            log.exception("operations ended")
            os._exit(1)  # or every later load would wait for ever

    def _result(self, message: m.Operation) -> m.OperationResult:
        match message:
            case m.LoadAdapter():
                return self._load(message)
            case m.UnloadAdapter():
                return self._unload(message)
            case m.HoldAdapters():
                return self._hold(message)

    def _unload(self, request: m.UnloadAdapter) -> m.OperationResult:
        self._engine.stores.forget(request.digest)
        return m.OperationDone(request.operation)

    def _hold(self, request: m.HoldAdapters) -> m.OperationResult:
        try:
            self._engine.stores.hold(request.digests)
        except AdapterError as error:
            return m.OperationFailed(request.operation, adapter_error(error))
        return m.OperationDone(request.operation)

    def _load(self, request: m.LoadAdapter) -> m.OperationResult:
        origin = request.derive or request.path
        try:
            loaded = self._engine.stores.load(origin, request.roots, request.digest)
        except AdapterError as error:
            return m.OperationFailed(request.operation, adapter_error(error))
        except Exception as error:  # whatever it was: who loads must hear of it
            log.exception("loading %r failed", request.name)
            what = f"adapter {request.name!r} was not loaded"
            return m.OperationFailed(
                request.operation, m.ErrorInfo("TurretError", what, repr(error))
            )
        return m.AdapterLoaded(operation=request.operation, info=_info(loaded))

    def _wake(self) -> None:
        with self._wake_lock:  # called from several threads; a socket belongs to one at a time
            self._wake_out.send(b"", zmq.NOBLOCK)

    def _connect(self, endpoint: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.PAIR)
        socket.connect(endpoint)
        return socket

    def _send(self, message: m.Outbound) -> None:
        self._socket.send(self._encode(message))

    def _report_stats(self) -> None:
        self._stats_due = time.monotonic() + _STATS_INTERVAL_S
        stats = self._engine.stats
        if stats != self._last_stats:
            self._last_stats = stats
            self._send(stats)

    def _profile(self, request: m.ProfileSteps) -> None:
        def done(result: m.Profiled) -> None:
            self._profiled.put(result)
            self._wake()

        engine = self._engine
        try:
            self._profiler = StepProfiler(
                request,
                engine.steps,
                engine.decoder.device.type,
                engine.phases,
                self._folder,
                done,
            )
        except Exception as error:  # torch's own: those who wait for tokens do not care
            done(not_profiled(request, error))

    def _fault(self, kind: str) -> None:
        if not self._engine.settings.faults:
            return
        if kind == "exit":
            os._exit(1)
        if kind == "hang":
            time.sleep(3600)
        raise RuntimeError(f"injected fault {kind!r}")


def _info(loaded: Loaded) -> m.AdapterInfo:
    facts = loaded.facts
    return m.AdapterInfo(
        digest=facts.digest,
        kind=facts.kind,
        rank=facts.rank,
        targets=list(facts.targets),
        sites=dict(facts.sites),
        num_layers=loaded.num_layers,
        unfit=loaded.unfit,
        num_parameters=facts.num_parameters,
        num_bytes=facts.num_bytes,
        base_model=facts.base_model,
        primitives=list(facts.primitives),
        num_virtual_tokens=facts.num_virtual_tokens,
        notes=list(facts.notes),
    )


def _log_progress():
    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 2 or done == total:
            last = time.monotonic()
            log.info("weights: %d of %d MB", done >> 20, total >> 20)

    return progress


if __name__ == "__main__":
    main()
