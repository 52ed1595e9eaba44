"""Soft prompts and prefixes in the engine: cache, stacks, preemption, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from peft import (
    LoraConfig,
    MultitaskPromptTuningConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
)
from safetensors.torch import load_file, save_file
from tests.kinds.case import peft_case
from tests.kinds.lab import PROMPTS, assert_same, base_reference

from turret_adapters.errors import AdapterMalformed, AdapterUnsupported
from turret_adapters.inspect import describe
from turret_server.engine.core import Engine
from turret_server.engine.messages import AdapterUse, EngineRequest, Sampling
from turret_server.engine.settings import EngineSettings

TASK = "CAUSAL_LM"
SOFT = peft_case("soft", "", lambda: PromptTuningConfig(task_type=TASK, num_virtual_tokens=40))
PREFIX = peft_case(
    "prefix", "", lambda: PrefixTuningConfig(task_type=TASK, num_virtual_tokens=40), std=0.7
)
LORA = peft_case("lora", "", lambda: LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
TASKS = peft_case(
    "tasks",
    "",
    lambda: MultitaskPromptTuningConfig(task_type=TASK, num_virtual_tokens=3, num_tasks=2),
    change=lambda model: None,
)


@pytest.fixture
def lab(labs):
    return labs("llama")


@pytest.fixture(params=[SOFT, PREFIX], ids=str)
def made(request, lab, tmp_path):
    """An adapter of 40 virtual tokens, more than a block and than a step: folder and reference."""
    folder = tmp_path / "adapter"
    return folder, request.param.make(folder, lab.model())


@pytest.fixture
def loaded(lab, made):
    loaded = lab.load(made[0])
    yield loaded
    lab.unload(loaded)


def ask(name, prompt, *adapters, **sampling):
    sampling = {"temperature": 0.0, "max_tokens": 4, **sampling}
    adapters = tuple(AdapterUse(digest) for digest in adapters)
    return EngineRequest(id=name, prompt=prompt, sampling=Sampling(**sampling), adapters=adapters)


def run(engine, *requests):
    """The events of each request."""
    events = {request.id: [] for request in requests}
    for request in requests:
        assert engine.submit(request) is None
    while not engine.idle:
        for event in engine.step():
            assert event.error is None, event.error
            events[event.id].append(event)
    assert engine.store.num_pins == engine.stats.kv_blocks_used == 0
    return list(events.values())


def tokens_of(events):
    return [token for event in events for token in event.tokens]


def greedy(reference, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(reference(torch.tensor(tokens))[-1].argmax()))
    return tokens[len(prompt) :]


def test_their_blocks_serve_the_next_request(lab, made, loaded):
    """The first block of 32 holds virtual tokens alone; the base must not find it."""
    reference, engine, prompt = made[1], lab.engine, PROMPTS[0]
    run(engine, ask("first", prompt, loaded.digest))
    before = engine.stats
    other = [1, 2, 3, *prompt]
    soft, base = run(engine, ask("soft", other, loaded.digest), ask("base", prompt))
    after = engine.stats
    assert after.step_tokens - before.step_tokens == (40 + 14 - 32) + 11 + 2 * 3
    assert after.prefix_queries - before.prefix_queries == 14 + 11
    assert after.prefix_hits == before.prefix_hits
    assert soft[0].cached_tokens == base[0].cached_tokens == 0
    assert tokens_of(soft) == greedy(reference, other, 4)
    assert tokens_of(base) == greedy(base_reference(lab.model()), prompt, 4)


def test_cached_tokens_count_the_prompt_alone(lab, loaded):
    prompt = PROMPTS[2]  # 45 tokens: positions 40 to 84
    run(lab.engine, ask("first", prompt, loaded.digest))
    ((first, *_),) = run(lab.engine, ask("again", prompt, loaded.digest))
    assert first.cached_tokens == 64 - 40


def test_preemption_computes_them_again(lab, made):
    """Two requests of 40 + 11 + 45 tokens in a cache of four blocks."""
    folder, reference = made
    block_bytes = lab.engine.decoder.kv_bytes_per_token * 32
    settings = EngineSettings(
        model=str(lab.folder), dtype="float32", kv_cache_bytes=4 * block_bytes, max_step_tokens=24
    )
    engine = Engine(settings)
    try:
        digest = engine.store.load(folder).result().digest
        prompts = [PROMPTS[0], [99, *PROMPTS[0][1:]]]
        answers = run(
            engine, *(ask(str(i), p, digest, max_tokens=45) for i, p in enumerate(prompts))
        )
        assert engine.stats.preemptions > 0
        for prompt, events in zip(prompts, answers, strict=True):
            assert tokens_of(events) == greedy(reference, prompt, 45)
    finally:
        engine.store.close()


def test_the_context_ends_behind_the_virtual_tokens(lab, loaded):
    (events,) = run(lab.engine, ask("long", PROMPTS[0], loaded.digest, max_tokens=500))
    assert len(tokens_of(events)) == 128 - 40 - 11
    assert events[-1].finish_reason == "length"


def test_with_a_lora_below(lab, made, loaded, tmp_path):
    """The LoRA acts on the virtual tokens too, as on a base that it was merged into."""
    LORA.make(tmp_path / "lora", lab.model())
    lora = lab.load(tmp_path / "lora")
    merged = PeftModel.from_pretrained(lab.model(), str(tmp_path / "lora")).merge_and_unload()
    both = PeftModel.from_pretrained(merged, str(made[0])).eval()

    @torch.no_grad()
    def reference(tokens):
        return both(tokens[None]).logits[0, -len(tokens) :]

    uses = AdapterUse(loaded.digest), AdapterUse(lora.digest)
    requests = [lab.ask(p, *order) for p in PROMPTS for order in (uses, uses[::-1], uses[1:], ())]
    answers = lab.run(requests)
    for i, answer in enumerate(answers):
        if i % 4 < 2:
            assert_same(answer, reference)
        elif i % 4 == 3:
            assert_same(answer, base_reference(lab.model()))
    lab.unload(lora)


@pytest.mark.parametrize("weight", [0.5, -1.0, 2.0, {"embed_tokens": 0.5}, {"k_proj": 0.0}])
def test_a_part_of_them_is_refused(lab, loaded, weight):
    request = lab.ask(PROMPTS[0], AdapterUse(loaded.digest, weight))
    event = lab.engine.submit(request)
    assert event.error.kind == "Unprocessable"
    assert "there or not" in event.error.why
    assert event.error.fix
    assert lab.engine.idle


def test_a_table_of_ones_is_one(lab, made, loaded):
    (answer,) = lab.run([lab.ask(PROMPTS[0], AdapterUse(loaded.digest, {"embed_tokens": 1.0}))])
    assert_same(answer, made[1])


def test_two_of_them_are_refused(lab, loaded, tmp_path):
    peft_case("other", "", lambda: PromptTuningConfig(task_type=TASK, num_virtual_tokens=2)).make(
        tmp_path / "other", lab.model()
    )
    other = lab.load(tmp_path / "other")
    uses = AdapterUse(loaded.digest), AdapterUse(other.digest)
    event = lab.engine.submit(lab.ask(PROMPTS[0], *uses))
    assert event.error.kind == "Unprocessable"
    assert "virtual tokens" in event.error.why
    lab.unload(other)


# ---------------------------------------------------------------- what a folder may say


def edit(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "error", "why"),
    [
        ({"num_virtual_tokens": 39}, AdapterUnsupported, "expected"),
        ({"num_virtual_tokens": 0}, AdapterMalformed, "num_virtual_tokens"),
        ({"num_virtual_tokens": None}, AdapterMalformed, "num_virtual_tokens"),
        ({"num_virtual_tokens": 8192}, AdapterUnsupported, "expected"),
        ({"num_virtual_tokens": 10**15}, AdapterUnsupported, "more than 8192"),
        ({"num_layers": 4}, AdapterUnsupported, "num_layers"),
        ({"num_layers": "3"}, AdapterMalformed, "num_layers"),
        ({"token_dim": 65}, AdapterUnsupported, "token_dim"),
        ({"num_transformer_submodules": 2}, AdapterUnsupported, "encoder-decoder"),
        ({"modules_to_save": ["lm_head"]}, AdapterUnsupported, "modules_to_save"),
        ({"surprise": True}, AdapterUnsupported, "surprise"),
    ],
)
def test_settings(lab, made, fields, error, why):
    edit(made[0], **fields)
    with pytest.raises(error) as caught:
        lab.load(made[0])
    assert why in caught.value.why


def test_a_prefix_of_other_heads_is_refused(lab, tmp_path):
    """The same numbers, cut into four heads of 8 instead of two of 16."""
    PREFIX.make(tmp_path, lab.model())
    edit(tmp_path, num_attention_heads=4)
    with pytest.raises(AdapterUnsupported, match="num_attention_heads"):
        lab.load(tmp_path)


def test_sizes_that_the_config_leaves_out(lab, made):
    """PEFT fills them in before it saves; they follow from the base anyway."""
    edit(made[0], num_layers=None, token_dim=None, num_attention_heads=None)
    loaded = lab.load(made[0])
    (answer,) = lab.run([lab.ask(PROMPTS[0], AdapterUse(loaded.digest))])
    assert_same(answer, made[1])
    lab.unload(loaded)


def test_a_missing_tensor_has_a_name(lab, made):
    path = made[0] / "adapter_model.safetensors"
    save_file({"something": torch.ones(1)}, path)
    with pytest.raises(AdapterMalformed, match="prompt_embeddings"):
        lab.load(made[0])


def test_several_tasks_need_a_choice(lab, tmp_path):
    TASKS.make(tmp_path, lab.model())
    with pytest.raises(AdapterUnsupported, match="task_id"):
        lab.load(tmp_path)
    edit(tmp_path, task_id=2)
    with pytest.raises(AdapterMalformed, match="task_id is 2"):
        lab.load(tmp_path)
    edit(tmp_path, task_id=1)
    lab.unload(lab.load(tmp_path))


def test_one_task_needs_none(lab, tmp_path):
    TASKS.make(tmp_path, lab.model())
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    for key in ("prefix_task_cols", "prefix_task_rows"):
        tensors[key] = tensors[key][:1].contiguous()
    save_file(tensors, path)
    edit(tmp_path, num_tasks=1)
    lab.unload(lab.load(tmp_path))


def test_a_task_of_a_plain_soft_prompt_is_refused(lab, tmp_path):
    SOFT.make(tmp_path, lab.model())
    edit(tmp_path, task_id=1)
    with pytest.raises(AdapterUnsupported, match="task_id"):
        lab.load(tmp_path)


def test_inspection_needs_no_base(made):
    report = describe(made[0])
    assert report["refusal"] is None
    assert report["num_parameters"] == report["num_bytes"] // 4
    assert list(report["modules"]) in (["embed_tokens"], ["k_proj"])
