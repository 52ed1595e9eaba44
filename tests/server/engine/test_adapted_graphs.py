"""Decode steps with virtual tokens behind them, or edited states, replay graphs like any other."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from tests.kinds.case import peft_case
from tests.kinds.cases.loreft import case as reft_case
from transformers import LlamaConfig, LlamaForCausalLM

from turret_kernels import native
from turret_server.engine.core import Engine
from turret_server.engine.messages import AdapterUse, EngineRequest, Sampling
from turret_server.engine.settings import EngineSettings

pytestmark = pytest.mark.skipif(native.lib is None, reason="graphs are of native kernels")

TASK = "CAUSAL_LM"
CASES = {
    "soft": peft_case("", "", lambda: PromptTuningConfig(task_type=TASK, num_virtual_tokens=5)),
    "prefix": peft_case(
        "", "", lambda: PrefixTuningConfig(task_type=TASK, num_virtual_tokens=40), std=0.7
    ),
    "lora": peft_case("", "", lambda: LoraConfig(r=4, target_modules=["q_proj", "o_proj"])),
    "reft": reft_case("", "all", "loreft"),
}
PROMPT = [5, 17, 99, 3, 42, 8, 64, 21, 9, 77, 11]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A bfloat16 engine, its adapters by name, and their references in float32."""
    folder = tmp_path_factory.mktemp("graphs")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data.normal_(0, 0.1)
    model.bfloat16().save_pretrained(folder / "base")
    engine = Engine(
        EngineSettings(model=str(folder / "base"), kv_cache_bytes=4 << 20, max_step_tokens=24)
    )
    digests, references = {}, {}
    for name, case in CASES.items():
        base = LlamaForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).eval()
        references[name] = case.make(folder / name, base)
        digests[name] = engine.store.load(folder / name).result().digest
    yield engine, digests, references
    engine.store.close()


def run(engine, digests, *recipes):
    """Log-probabilities of the greedy answers [request][position]."""
    answers = {}
    for i, recipe in enumerate(recipes):
        request = EngineRequest(
            id=str(i),
            prompt=PROMPT,
            sampling=Sampling(temperature=0, max_tokens=6, logprobs=0),
            adapters=tuple(AdapterUse(digests[name]) for name in recipe),
            cache_namespace=f"{i}",
        )
        answers[str(i)] = []
        assert engine.submit(request) is None
    while not engine.idle:
        for event in engine.step():
            assert event.error is None
            answers[event.id] += [(e.token, e.logprob) for e in event.logprobs]
    return list(answers.values())


RECIPES = {
    "soft": [["soft"]],
    "prefix": [["prefix"]],
    "both and the base": [["soft"], [], ["prefix"]],
    "over a lora": [["soft", "lora"], ["lora"]],
    "edited states": [["reft"], ["prefix", "reft"], []],
}


@pytest.mark.parametrize("recipes", RECIPES.values(), ids=RECIPES)
def test_a_replayed_decode_is_the_eager_one(served, recipes, monkeypatch):
    engine, digests, _ = served
    runner = engine._runner
    runner._graphs.clear()
    replayed = run(engine, digests, *recipes)
    keys = list(runner._graphs)
    assert keys, "no decode step was recorded"
    adapts = any({"lora", "reft"} & set(recipe) for recipe in recipes)
    # With nothing else every decode is the base's: virtual tokens lie in the cache.
    assert adapts or all(isinstance(key, int) for key in keys)
    monkeypatch.setattr(runner, "_key", lambda batch: None)
    assert run(engine, digests, *recipes) == replayed


@pytest.mark.parametrize("recipes", RECIPES.values(), ids=RECIPES)
def test_a_replayed_decode_finds_tokens_that_were_not_known(served, recipes, monkeypatch):
    engine, digests, _ = served
    in_order = run(engine, digests, *recipes)
    graphs = len(engine._runner._graphs)
    monkeypatch.setattr(engine, "_overlaps", True)
    assert run(engine, digests, *recipes) == in_order
    assert len(engine._runner._graphs) == graphs > 0


@pytest.mark.parametrize("name", CASES)
def test_the_native_cache_holds_what_peft_computes(served, name):
    """bfloat16 keeps 8 bits: as close to float32 as a plain LoRA comes, and far from the others."""
    engine, digests, references = served
    (answer,) = run(engine, digests, [name])
    tokens = torch.tensor(PROMPT + [token for token, _ in answer])
    errors = {}
    for other, reference in references.items():
        logprobs = reference(tokens).log_softmax(-1)
        found = [
            abs(float(logprobs[len(PROMPT) - 1 + i, token]) - logprob)
            for i, (token, logprob) in enumerate(answer)
        ]
        errors[other] = max(found)
    assert errors.pop(name) < 0.05
    assert min(errors.values()) > 0.2
