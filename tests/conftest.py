"""What the end-to-end and the chaos tests share: real servers, and adapters for the demo model."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

TURRET = Path(sys.executable).with_name("turret")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
_servers: list[Server] = []


class Server:
    """A `turret serve` process of its own.

    Attributes:
        COMMAND: of `turret`.
        START_S: how long it may take to listen.
        url: where it listens.
        lines: what it has written so far.
    """

    COMMAND: tuple[str, ...] = ("serve",)
    START_S = 120.0  # a machine busy with other tests; a quiet one takes three seconds

    def __init__(self, *arguments: str) -> None:
        self.url = ""
        self.lines: list[str] = []
        self._listening = threading.Event()
        self.process = subprocess.Popen(
            [TURRET, *self.COMMAND, "demo", "--port", "0", "--log-level", "warning", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_until_listening(self) -> None:
        """Until requests can be sent; the process may have ended instead."""
        assert self._listening.wait(self.START_S), "the server did not start in time"
        assert self.url, "the server ended before it listened"

    def close(self) -> None:
        """End it, whatever state it is in."""
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(timeout=10)

    def engines(self) -> list[Any]:
        """The engine's process: one, none while it is restarted."""
        import psutil

        found = []
        for process in self.descendants():
            with suppress(psutil.Error):  # it has ended meanwhile
                if "turret_server.engine.process" in process.cmdline():
                    found.append(process)
        return found

    def descendants(self) -> list[Any]:
        """Every process below the server, as psutil sees it."""
        import psutil

        return psutil.Process(self.process.pid).children(recursive=True)

    def metrics(self) -> dict[str, float]:
        """The metrics page: series without their labels, summed."""
        import httpx2
        from prometheus_client.parser import text_string_to_metric_families

        found: dict[str, float] = {}
        page = httpx2.get(f"{self.url}/metrics", timeout=30).raise_for_status().text
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if match := re.search(r"listening on (http://\S+)", line):
                self.url = match.group(1)
                self._listening.set()
        self._listening.set()


AnyServer = TypeVar("AnyServer", bound=Server)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, Any]:
    """Show with a failure what the servers of this moment have said."""
    report = yield
    if report.failed:
        for server in _servers:
            text = "".join(server.lines[-60:])
            report.sections.append((f"server {server.url or '(not listening)'}", text))
    return report


@pytest.fixture(scope="module", autouse=True)
def _objects_of_other_modules() -> None:
    """Keep them out of the collector's way: a full collection would take a second of some test."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """The interpreter's end frees what is not frozen."""
    gc.unfreeze()


@contextmanager
def running(server: AnyServer) -> Iterator[AnyServer]:
    """Wait until it listens, show with failures what it has said, and end it."""
    _servers.append(server)
    try:
        server.wait_until_listening()
        yield server
    finally:
        server.close()
        _servers.remove(server)


@pytest.fixture(scope="session")
def serve() -> Callable[..., Any]:
    """`with serve(*flags) as server`: the demo model on a free port."""
    return lambda *arguments: running(Server(*arguments))


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Wait for what nothing announces, such as a figure on the metrics page."""

    def wait(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
            time.sleep(0.02)

    return wait


class Lora(NamedTuple):
    """Options of a random adapter."""

    rank: int
    targets: tuple[str, ...] = ATTENTION + MLP
    layers: tuple[int, ...] | None = None
    use_rslora: bool = False


LORAS = {
    "r8": Lora(8),
    "r16": Lora(16),
    "r32": Lora(32),
    "r16-rslora": Lora(16, use_rslora=True),
    "r8-qv": Lora(8, ("q_proj", "v_proj")),
    "r32-attention": Lora(32, ATTENTION),
    "r8-mlp-rslora": Lora(8, MLP, use_rslora=True),
    "r16-first-layers": Lora(16, layers=tuple(range(10))),
}


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The demo model."""
    from turret_server.demo import demo_model

    return demo_model(progress=False)


@pytest.fixture(scope="session")
def save_lora(demo_folder: Path) -> Callable[..., Path]:
    """Write a random LoRA of the demo model as PEFT does."""
    config = json.loads((demo_folder / "config.json").read_text())

    def save(folder: Path, seed: int, rank: int = 8, **options: Any) -> Path:
        _save_lora(folder, seed, Lora(rank, **options), config)
        return folder

    return save


@pytest.fixture(scope="session")
def adapters(
    save_lora: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Eight random adapters: all linears and some, ranks 8 to 32, with and without rsLoRA."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: save_lora(root / name, seed, **lora._asdict())
        for seed, (name, lora) in enumerate(LORAS.items())
    }


def _save_lora(folder: Path, seed: int, lora: Lora, config: dict[str, Any]) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    shapes = {  # module -> (outputs, inputs)
        "self_attn.q_proj": (heads * head, hidden),
        "self_attn.k_proj": (kv_heads * head, hidden),
        "self_attn.v_proj": (kv_heads * head, hidden),
        "self_attn.o_proj": (hidden, heads * head),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layers = lora.layers if lora.layers is not None else range(config["num_hidden_layers"])
    random, tensors = np.random.default_rng(seed), {}
    for layer in layers:
        for module, (outputs, inputs) in shapes.items():
            if module.split(".")[1] not in lora.targets:
                continue
            name = f"base_model.model.model.layers.{layer}.{module}"
            a = random.standard_normal((lora.rank, inputs), dtype=np.float32) * inputs**-0.5
            b = random.standard_normal((outputs, lora.rank), dtype=np.float32)
            tensors[f"{name}.lora_A.weight"] = a
            # Strong enough to change answers, weak enough that they stay language.
            tensors[f"{name}.lora_B.weight"] = b * (0.3 * lora.rank**-0.5)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "r": lora.rank,
        "lora_alpha": lora.rank**0.5 if lora.use_rslora else lora.rank,
        "use_rslora": lora.use_rslora,
        "target_modules": sorted(lora.targets),
        "layers_to_transform": None if lora.layers is None else list(lora.layers),
        "layers_pattern": None if lora.layers is None else "layers",
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2))
