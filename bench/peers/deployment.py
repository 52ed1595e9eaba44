"""What every server under comparison has to tell: how to install, start, and ask it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from turret_server.loadtest.config import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What a server is started for.

    Attributes:
        model: folder of the base model (config.json, safetensors, tokenizer.json).
        adapters: adapter name to PEFT folder, all resident from the start.
        max_concurrency: most requests that the loads will have running at once.
        max_model_len: longest prompt plus output, in tokens.
        port: port on the loopback interface.
    """

    model: Path
    adapters: Mapping[str, Path]
    max_concurrency: int
    max_model_len: int
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to start a server.

    Attributes:
        argv: the command.
        env: variables on top of the caller's.
        ready_path: route that answers 200 once requests are served.
    """

    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    ready_path: str = "/health"


class Server(Protocol):
    """One server under comparison."""

    name: str

    def install(self) -> None:
        """Install into a folder of its own below the cache; do nothing when it is there."""
        ...

    def versions(self) -> dict[str, str]:
        """Return the versions of what was installed."""
        ...

    def launch(self, deployment: Deployment) -> Launch:
        """Return how to start it, after converting whatever it needs converted."""
        ...

    def base(self, deployment: Deployment) -> Target:
        """Return how a request asks for the base model."""
        ...

    def adapter(self, deployment: Deployment, name: str) -> Target:
        """Return how a request asks for an adapter."""
        ...
