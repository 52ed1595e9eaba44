"""Requests whose grammar is being compiled: beside the steps, so that nobody else waits for it."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from turret_server.engine.grammar import GrammarCompiler
from turret_server.engine.messages import ErrorInfo
from turret_server.engine.sequence import Sequence
from turret_server.errors import TurretError


class GrammarQueue:
    """One thread that gives sequences their matchers; llguidance compiles without the GIL.

    Args:
        make_compiler: called in the thread, before the first grammar: it takes 0.3 s, and most
            servers never see one.
        wake: called in the thread when a sequence is done.
    """

    def __init__(self, make_compiler: Callable[[], GrammarCompiler], wake: Callable[[], None]):
        self._make_compiler, self._wake = make_compiler, wake
        self._compiler: GrammarCompiler | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._pending: dict[str, Sequence] = {}
        self._done: queue.SimpleQueue[tuple[Sequence, ErrorInfo | None]] = queue.SimpleQueue()

    def put(self, sequence: Sequence) -> None:
        """Compile the grammar of a sequence."""
        self._pending[sequence.request.id] = sequence
        self._thread.submit(self._compile, sequence)

    def cancel(self, request_id: str) -> bool:
        """Forget a sequence; False if it is not here."""
        return self._pending.pop(request_id, None) is not None

    def take(self) -> Iterator[tuple[Sequence, ErrorInfo | None]]:
        """The sequences that are done and were not cancelled, with what went wrong."""
        while not self._done.empty():
            sequence, error = self._done.get()
            if self._pending.pop(sequence.request.id, None) is sequence:
                yield sequence, error

    def _compile(self, sequence: Sequence) -> None:
        error: ErrorInfo | None = None
        grammar = sequence.request.sampling.grammar
        assert grammar is not None
        try:
            if self._compiler is None:
                self._compiler = self._make_compiler()
            sequence.grammar = self._compiler.matcher(grammar)
        except TurretError as e:
            error = ErrorInfo(type(e).__name__, e.what, e.why, e.fix)
        except Exception as e:  # the client must hear of it, whatever it was
            error = ErrorInfo("TurretError", "the grammar could not be compiled", repr(e))
        self._done.put((sequence, error))
        self._wake()
