"""What the API knows of the engine: a protocol, so that tests serve a fake one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from turret_adapters.derivation import Derivation
from turret_server.engine.messages import (
    AdapterInfo,
    EngineReady,
    EngineRequest,
    EngineStats,
    Profiled,
    TokenEvent,
)


class EngineClient(Protocol):
    """The engine as seen from the API process (implemented by engine.link.EngineLink).

    Errors are those of turret_server.errors: `EngineUnavailable` at once when the engine is not
    up, and from every open `generate` within a second of its death.
    """

    ready: EngineReady | None  # None while starting or restarting
    stats: EngineStats  # the latest received
    restarts: int  # engines that ended so far

    def generate(self, request: EngineRequest) -> AsyncIterator[TokenEvent]:
        """Submit and yield events; the last one has `finish_reason`.

        Closing the iterator early (or cancelling the task that reads it) cancels the request in
        the engine. An event with finish_reason "error" is raised as its error class.
        """
        ...

    async def load_adapter(
        self,
        name: str,
        path: str,
        roots: Sequence[str] | None = None,
        derive: Derivation | None = None,
        *,
        digest: str | None = None,
        keep: bool = True,
    ) -> AdapterInfo:
        """Load and validate an adapter folder, or make an adapter of several.

        Args:
            name: for messages.
            path: the folder; empty for a derived adapter.
            roots: folders that may be read, after links are followed; None for all.
            derive: what to derive it from.
            digest: the only content that is accepted; None accepts any.
            keep: an engine that restarts gets it again.

        Raises:
            BadRequest, Unprocessable, Forbidden, NotFound.
        """
        ...

    async def hold_adapters(self, digests: Sequence[str]) -> None:
        """Keep exactly these adapters on the device from now on, whatever else is asked for.

        Raises:
            Unprocessable: they do not fit together; nothing has changed.
            NotFound: one is not loaded.
        """
        ...

    async def profile(self, steps: int, wait_s: float, *, trace: bool = False) -> Profiled:
        """Watch the next steps.

        Args:
            steps: how many.
            wait_s: how long at most; an idle engine makes none.
            trace: write a file of all operations, too.

        Raises:
            Conflict: it is being profiled already.
            TurretError: the profiler failed; the steps went on.
        """
        ...

    async def unload_adapter(self, digest: str) -> None:
        """Forget an adapter once no request uses it."""
        ...
