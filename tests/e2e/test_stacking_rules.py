"""Each rule of docs/adapters.md for what may be stacked, as a client meets it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from safetensors.numpy import save_file

pytestmark = pytest.mark.e2e

LAYERS, HIDDEN, KV = 30, 576, 192


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Any]) -> None:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config | {"task_type": "CAUSAL_LM"}))
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def stacks(
    serve: Callable[..., Any], save_lora: Callable[..., Path], tmp_path_factory: Any
) -> Iterator[Any]:
    """A server with two of each kind, room for four adapters and for 12 rank rows per linear."""
    root = tmp_path_factory.mktemp("stacks")
    for i in (1, 2):
        save_lora(root / f"lora-{i}", i, rank=8)
        scale = np.full((KV, 1), 1 + i / 10, np.float32)
        key = "base_model.model.model.layers.{}.self_attn.k_proj.ia3_l"
        write(
            root / f"ia3-{i}",
            {"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": []},
            {key.format(layer): scale for layer in range(LAYERS)},
        )
        soft = np.random.default_rng(i).standard_normal((4, HIDDEN), np.float32) / 10
        write(
            root / f"soft-{i}",
            {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "token_dim": HIDDEN},
            {"prompt_embeddings": soft},
        )
        (root / f"cats-{i}").mkdir()
        cats = {"kind": "cats", "version": 1, "thresholds": [i / 100] * LAYERS}
        (root / f"cats-{i}" / "turret_adapter.json").write_text(json.dumps(cats))
    (root / "teal").mkdir()
    teal = {"kind": "teal", "version": 1, "thresholds": {"q_proj": [0.1] * LAYERS}}
    (root / "teal" / "turret_adapter.json").write_text(json.dumps(teal))
    for i, module in enumerate(("q_proj", "v_proj")):
        key = f"base_model.model.model.layers.{{}}.self_attn.{module}.oft_R.weight"
        skew = np.full((HIDDEN // 8, 28), 0.01 + i / 100, np.float32)
        write(
            root / f"oft-{module}",
            {"peft_type": "OFT", "target_modules": [module], "oft_block_size": 8}
            | {"r": 0, "use_cayley_neumann": True},
            {key.format(layer): skew for layer in range(LAYERS)},
        )
    flags = ["--max-resident-adapters=4", "--adapter-rank-rows=12"]
    with serve(*flags, *(f"--adapter={p.name}={p}" for p in sorted(root.iterdir()))) as server:
        yield server


def ask(server: Any, *adapters: Any) -> httpx2.Response:
    chosen = [
        {"name": a} if isinstance(a, str) else {"name": a[0], "weight": a[1]} for a in adapters
    ]
    body = {"prompt": "One", "max_tokens": 2, "adapters": chosen}
    return httpx2.post(f"{server.url}/v1/completions", json=body, timeout=120)


@pytest.mark.parametrize(
    ("adapters", "why"),
    [
        (["ia3-1", "ia3-2"], "two of them scale layers.0.k_proj"),
        (["cats-1", "cats-2"], "two of them threshold layers.0.act_fn"),
        (["teal", "oft-q_proj"], "one of them thresholds the input of layers.0.q_proj"),
        (["soft-1", "soft-2"], "two of them put virtual tokens before the prompt"),
        (["lora-1", "lora-2"], "16 rank rows"),
        (["ia3-1", "ia3-2", "cats-1", "soft-1", "lora-1"], "there are 4 slots"),
        ([("cats-1", 0.5)], "half of that has no meaning"),
        ([("cats-1", {"layers.0": 0})], "half of that has no meaning"),
        ([("soft-1", 0.5)], "they are there or not"),
        ([("soft-1", {"*": 0.5})], "they are there or not"),
        ([("lora-1", {"layers.30": 1})], "the base has 30, from 0 to 29"),
        ([("ia3-1", {"q_proj": 1})], "it touches k_proj"),
    ],
    ids=str,
)
def test_refused_with_the_reason(stacks: Any, adapters: list[Any], why: str) -> None:
    answer = ask(stacks, *adapters)
    error = answer.json()["error"]
    assert answer.status_code == 422, error
    assert why in error["why"]
    assert error["what"]
    assert error["fix"]


@pytest.mark.parametrize(
    "adapters",
    [
        ["lora-1", "ia3-1", "cats-1", "soft-1"],
        ["teal", ("oft-v_proj", 0.5), ("oft-q_proj", 0)],
        [("oft-v_proj", -1), ("oft-q_proj", {"layers.0-9": 0}), "lora-2"],
        [("lora-1", 0.5), ("ia3-1", -1.0), ("ia3-2", 0)],
        [("cats-1", 0), "cats-2"],
        [("soft-1", {"*": 0}), "soft-2"],
    ],
    ids=str,
)
def test_served(stacks: Any, adapters: list[Any]) -> None:
    """Among them adapters of weight 0, which are not there."""
    assert ask(stacks, *adapters).status_code == 200


@pytest.mark.parametrize(
    ("derive", "why"),
    [
        ({"method": "sum", "sources": ["lora-1", "ia3-1"]}, "it uses Scale"),
        ({"method": "sum", "sources": ["cats-1"]}, "it uses Threshold"),
        ({"method": "sum", "sources": ["soft-1"]}, "it puts tokens before"),
        ({"method": "sum", "sources": ["lora-1", "lora-2"]}, "16 rank rows"),
    ],
    ids=["scale", "threshold", "virtual tokens", "rank"],
)
def test_what_cannot_be_derived(stacks: Any, derive: dict[str, Any], why: str) -> None:
    answer = httpx2.put(f"{stacks.url}/v1/adapters/made", json={"derive": derive}, timeout=120)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (422, "derive")
    assert why in error["why"]
    assert httpx2.get(f"{stacks.url}/v1/adapters/made").status_code == 404


def test_a_derived_adapter_answers_as_the_stack(stacks: Any) -> None:
    """TIES of one source that keeps everything is the source, up to rounding to bfloat16."""

    def score(model: str) -> list[float]:
        body = {"model": model, "prompt": "One two three", "max_tokens": 0, "echo": True}
        answer = httpx2.post(
            f"{stacks.url}/v1/completions", json=body | {"logprobs": 0}, timeout=120
        )
        return answer.raise_for_status().json()["choices"][0]["logprobs"]["token_logprobs"][1:]

    derive = {"method": "ties", "sources": ["lora-1"], "density": 1, "rank": 8}
    for status in (201, 200):
        answer = httpx2.put(f"{stacks.url}/v1/adapters/made", json={"derive": derive}, timeout=120)
        assert answer.status_code == status
    assert answer.json()["path"] == "ties(lora-1, density=1, rank=8)"
    assert score("made") == pytest.approx(score("lora-1"), abs=0.5)
    assert score("made") != pytest.approx(score("smollm2-135m-instruct"), abs=0.5)
    assert httpx2.delete(f"{stacks.url}/v1/adapters/made").status_code == 200
