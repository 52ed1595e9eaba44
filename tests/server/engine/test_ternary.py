"""Compressed adapters answer alike whether they take two bits a value or the served dtype's."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from tests.kinds.case import peft_case
from transformers import LlamaConfig, LlamaForCausalLM

from turret_adapters.compress.compeft import compress
from turret_server.engine.core import Engine
from turret_server.engine.device import ternary_rows
from turret_server.engine.messages import AdapterUse, EngineRequest, Sampling
from turret_server.engine.settings import EngineSettings

EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "one": LoraConfig(r=4, lora_alpha=16, target_modules=EVERY),
    "two": LoraConfig(r=3, target_modules=["q_proj", "down_proj"]),
    "dense": LoraConfig(r=5, target_modules=["v_proj", "down_proj"]),
}
COMPRESSED = ("one", "two")
# (adapter, weight) of every request; all run in one batch.
RECIPES = [
    [("one", 1.0)],
    [],
    [("dense", 1.0)],
    [("two", 0.5)],
    [("dense", 0.7), ("one", -1.0)],
    [("one", 1.0), ("two", {"q_proj": 0.5, "down_proj": 1.5}), ("dense", 0.25)],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama, two compressed adapters and one that is not."""
    folder = tmp_path_factory.mktemp("ternary")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data.normal_(0, 0.1)
    model.save_pretrained(folder / "base")
    for name, lora in CASES.items():
        base = LlamaForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).eval()
        made = folder / (f"{name}-source" if name in COMPRESSED else name)
        peft_case("", "", lambda lora=lora: lora).make(made, base)
        if name in COMPRESSED:
            compress(made, folder / name, density=0.4)
    return folder


def answers(folder, rows, dtype="float32"):
    """Primitives by adapter, and (token, log-probability) of every greedy answer."""
    engine = Engine(
        EngineSettings(
            model=str(folder / "base"),
            dtype=dtype,
            kv_cache_bytes=2 << 20,
            max_step_tokens=24,
            adapter_ternary_rows=rows,
        )
    )
    loaded = {name: engine.store.load(folder / name).result() for name in CASES}
    found = {str(i): [] for i in range(len(RECIPES))}
    for i, recipe in enumerate(RECIPES):
        request = EngineRequest(
            id=str(i),
            prompt=[5 + i, 17, 99, 3, 42, 8],
            sampling=Sampling(temperature=0, max_tokens=8, logprobs=0),
            adapters=tuple(AdapterUse(loaded[name].digest, weight) for name, weight in recipe),
            cache_namespace=str(i),
        )
        assert engine.submit(request) is None
    while not engine.idle:
        for event in engine.step():
            assert event.error is None
            found[event.id] += [(e.token, e.logprob) for e in event.logprobs]
    engine.store.close()
    return {name: info.primitives for name, info in loaded.items()}, list(found.values())


def test_two_bits_a_value_answer_as_sixteen_would(folder):
    primitives, packed = answers(folder, rows=16)
    assert primitives["one"] == primitives["two"] == ("TernaryLowRank",)
    assert primitives["dense"] == ("LowRank",)
    primitives, unpacked = answers(folder, rows=0)
    assert set(primitives.values()) == {("LowRank",)}
    for got, want in zip(packed, unpacked, strict=True):
        assert [token for token, _ in got] == [token for token, _ in want]
        for (_, one), (_, other) in zip(got, want, strict=True):
            assert one == pytest.approx(other, abs=1e-4)
    assert len({tuple(token for token, _ in answer) for answer in packed}) > 2


def test_in_bfloat16_the_unrounded_scales_differ_by_a_rounding(folder):
    """The first tokens: behind them, two that are nearly as likely may change places."""
    (_, packed), (_, unpacked) = (answers(folder, rows, "bfloat16") for rows in (16, 0))
    for got, want in zip(packed, unpacked, strict=True):
        assert got[0][1] == pytest.approx(want[0][1], abs=0.1)


def test_a_cpu_unpacks_them_unless_told_otherwise():
    settings = EngineSettings(model="", adapter_rank_rows=64)
    assert ternary_rows(settings, torch.device("cpu")) == 0
    assert ternary_rows(settings, torch.device("cuda", 0)) == 64
    told = EngineSettings(model="", adapter_rank_rows=64, adapter_ternary_rows=256)
    assert ternary_rows(told, torch.device("cpu")) == 256
