"""transformers and PEFT behind a minimal HTTP server: what one writes without a server."""

from __future__ import annotations

from pathlib import Path

from deployment import Deployment, Launch
from folders import TORCH, make_venv, package_versions, peer_folder, pip, venv_python

from turret_server.loadtest.config import Target

_PACKAGES = {"transformers": "5.24.0", "peft": "0.21.2", "aiohttp": "3.14.5"}


class Peft:
    """`peft_app.py` in a virtual environment of its own."""

    name = "transformers+peft"

    def __init__(self) -> None:
        self._folder = peer_folder("peft")
        self._python = venv_python(self._folder)

    def install(self) -> None:
        """Install transformers, PEFT and aiohttp."""
        installed = self._folder / "installed"
        if installed.exists():
            return
        python = make_venv(self._folder)
        pip(python, "install", TORCH, *(f"{name}=={v}" for name, v in _PACKAGES.items()))
        installed.touch()

    def versions(self) -> dict[str, str]:
        """Return the versions of transformers, PEFT and PyTorch."""
        return package_versions(self._python, "transformers", "peft", "torch")

    def launch(self, deployment: Deployment) -> Launch:
        """Return the minimal server, batching up to the concurrency of the load."""
        argv = [
            *(str(self._python), str(Path(__file__).with_name("peft_app.py"))),
            *("--model", str(deployment.model), "--port", str(deployment.port)),
            *("--max-batch", str(deployment.max_concurrency)),
        ]
        for name, path in deployment.adapters.items():
            argv += ["--adapter", f"{name}={path}"]
        return Launch(argv=argv, env={"HF_HUB_OFFLINE": "1"})

    def base(self, deployment: Deployment) -> Target:
        """Return the base model."""
        return Target(model="base")

    def adapter(self, deployment: Deployment, name: str) -> Target:
        """Return an adapter: its name is a model."""
        return Target(model=name)
