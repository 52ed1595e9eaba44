"""Turret itself, started like the others: as its command line, in a process of its own."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from deployment import Deployment, Launch

from turret_server.loadtest.config import Target


class Turret:
    """The `turret` command of the environment that runs this script."""

    name = "turret"

    def install(self) -> None:
        """Do nothing: it is what runs this script."""

    def versions(self) -> dict[str, str]:
        """Return the versions of Turret and PyTorch."""
        return {name: metadata.version(name) for name in ("turret", "torch")}

    def launch(self, deployment: Deployment) -> Launch:
        """Return `turret serve` with every adapter as an option."""
        argv = [
            *(str(Path(sys.executable).with_name("turret")), "serve", str(deployment.model)),
            *("--host", "127.0.0.1", "--port", str(deployment.port)),
            *("--served-name", "base", "--dtype", "bfloat16"),
            *("--max-model-len", str(deployment.max_model_len)),
        ]
        for name, path in deployment.adapters.items():
            argv += ["--adapter", f"{name}={path}"]
        return Launch(argv=argv, ready_path="/ready")

    def base(self, deployment: Deployment) -> Target:
        """Return the base model."""
        return Target(model="base")

    def adapter(self, deployment: Deployment, name: str) -> Target:
        """Return an adapter: its name is a model."""
        return Target(model=name)
