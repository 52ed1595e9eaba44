"""What each kind of adapter costs a decode step, beside plain LoRA and beside nothing.

    python bench/kinds.py MODEL --output bench/results/kinds.json

Writes random adapters of several kinds (PEFT writes those that it has), loads them into an engine
in this process, and times decode steps of eight rows:

- the base;
- eight rows of one kind, for each kind;
- eight rows of eight *different* kinds, and eight plain LoRAs that together hold as many bytes.

Steps of all cases are interleaved, so that a machine that slows down slows all of them alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    PeftConfig,
    PromptTuningConfig,
    ShiraConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from turret_server.engine.core import Engine
from turret_server.engine.messages import AdapterUse, EngineRequest, Sampling
from turret_server.engine.settings import EngineSettings
from turret_server.loadtest.environment import describe_environment

ROWS = 8
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_CONTEXT = 64  # tokens of each prompt


def peft_configs() -> dict[str, PeftConfig]:
    """Kinds that PEFT writes."""
    return {
        "lora": LoraConfig(r=16, target_modules=LINEARS),
        "dora": LoraConfig(r=16, target_modules=LINEARS, use_dora=True),
        "loha": LoHaConfig(r=4, target_modules=LINEARS),
        "vera": VeraConfig(r=16, target_modules=["q_proj", "o_proj"]),
        "ia3": IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
        "ln_tuning": LNTuningConfig(
            target_modules=["input_layernorm", "post_attention_layernorm", "norm"]
        ),
        "shira": ShiraConfig(r=16, target_modules=LINEARS),
        "prompt_tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=16),
    }


def write_adapters(model: Path, folder: Path) -> dict[str, Path]:
    """One adapter of every kind."""
    for name, config in peft_configs().items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
            torch.manual_seed(0)
            adapted = get_peft_model(base, config)
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.data += torch.randn_like(parameter) * 0.01
            adapted.save_pretrained(str(folder / name))
    write_own(model, folder)
    return {path.name: path for path in sorted(folder.iterdir())}


def write_own(model: Path, folder: Path) -> None:
    """LoFiT offsets of a tenth of the heads, and CATS thresholds."""
    config = AutoConfig.from_pretrained(model)
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    chosen = torch.randperm(layers * heads)[: max(1, layers * heads // 10)]
    lofit, cats = folder / "lofit", folder / "cats"
    for path in (lofit, cats):
        path.mkdir(parents=True)
    (lofit / "turret_adapter.json").write_text(json.dumps({"kind": "lofit", "version": 1}))
    save_file(
        {
            "layers": chosen // heads,
            "heads": chosen % heads,
            "v": torch.randn(len(chosen), config.hidden_size // heads) * 0.01,
        },
        lofit / "adapter.safetensors",
    )
    thresholds = [0.05] * layers
    (cats / "turret_adapter.json").write_text(
        json.dumps({"kind": "cats", "version": 1, "thresholds": thresholds})
    )


def write_loras(model: Path, folder: Path, num_bytes: int) -> list[Path]:
    """Eight plain LoRAs on all linears that together hold about as many bytes."""
    config = AutoConfig.from_pretrained(model)
    hidden, inner = config.hidden_size, config.intermediate_size
    head_dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    q, kv = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    per_rank = 2 * config.num_hidden_layers * (2 * (hidden + q) + 2 * (hidden + kv))
    per_rank += 2 * config.num_hidden_layers * 3 * (hidden + inner)
    rank = max(1, round(num_bytes / ROWS / per_rank))
    paths = []
    for number in range(ROWS):
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        torch.manual_seed(number)
        adapted = get_peft_model(base, LoraConfig(r=rank, target_modules=LINEARS))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn_like(parameter) * 0.01
        paths.append(folder / f"lora{number}")
        adapted.save_pretrained(str(paths[-1]))
    return paths


class Bench:
    """An engine, and the batches whose steps are timed."""

    def __init__(self, model: Path) -> None:
        self._wake = threading.Event()
        settings = EngineSettings(
            model=str(model), dtype="bfloat16", max_model_len=2048, adapter_rank_rows=2048
        )
        self.engine = Engine(settings, wake=self._wake.set)

    def load(self, path: Path) -> Any:
        """Load an adapter folder."""
        return self.engine.store.load(path).result()

    def steps(self, digests: list[str | None], count: int) -> list[float]:
        """Seconds of `count` decode steps in which row i runs adapter i (None: the base)."""
        torch.manual_seed(0)
        for i, digest in enumerate(digests):
            request = EngineRequest(
                id=str(i),
                prompt=torch.randint(5, 2000, (_CONTEXT,)).tolist(),
                sampling=Sampling(temperature=0.0, max_tokens=count + 8),
                adapters=() if digest is None else (AdapterUse(digest),),
            )
            assert self.engine.submit(request) is None
        took: list[float] = []
        running = self.engine.scheduler.running
        while not self.engine.idle:
            is_decode = len(running) == len(digests) and all(s.remaining == 1 for s in running)
            began = time.perf_counter()
            if not self.engine.step() and not running:
                self._wake.wait(1.0)
            if is_decode:
                took.append(time.perf_counter() - began)
        return took[3:-3]  # the first ones record graphs, at the end rows leave


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All cases, interleaved."""
    kinds = write_adapters(args.model, folder / "kinds")
    bench = Bench(args.model)
    facts = {name: bench.load(path) for name, path in kinds.items()}
    mixed = [facts[name] for name in args.mixed]
    total = sum(fact.num_bytes for fact in mixed)
    plain = [bench.load(p) for p in write_loras(args.model, folder / "plain", total)]
    cases: dict[str, list[str | None]] = {"base": [None] * ROWS}
    cases |= {name: [fact.digest] * ROWS for name, fact in facts.items()}
    cases["eight kinds"] = [fact.digest for fact in mixed]
    cases["eight LoRAs of the same bytes"] = [fact.digest for fact in plain]
    took: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(args.rounds):
        for name, digests in cases.items():
            took[name] += bench.steps(digests, args.steps)
    bench.engine.store.close()
    base_ms = statistics.median(took["base"]) * 1e3
    result = {
        name: {
            "step_ms": round(statistics.median(times) * 1e3, 3),
            "to_base": round(statistics.median(times) * 1e3 / base_ms, 3),
            "num_bytes": facts[name].num_bytes if name in facts else None,
        }
        for name, times in took.items()
    }
    mixed_ms = result["eight kinds"]["step_ms"]
    ratio = mixed_ms / result["eight LoRAs of the same bytes"]["step_ms"]
    return {"mixed": args.mixed, "mixed_to_plain": round(ratio, 3), "cases": result}


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of the base model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="decode steps per case and round")
    parser.add_argument(
        "--mixed",
        nargs=ROWS,
        default=["lora", "dora", "loha", "vera", "ia3", "lofit", "cats", "shira"],
        help="the eight kinds of the mixed batch",
    )
    parser.add_argument("--output", type=Path, help="write the numbers as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    print(json.dumps(result, indent=1))
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**describe_environment(), **result}, indent=1)
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
