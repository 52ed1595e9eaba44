"""Auxiliary models in fusions, with decoders and caches of their own: against transformers."""

from __future__ import annotations

import copy

import msgspec
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.fusion_reference import transformers_model
from tests.server.engine.test_fusion import (
    OTHER,
    PROMPT,
    VOCAB,
    A,
    Bench,
    assert_same,
    at,
    one_thread,  # noqa: F401 (a fixture)
)
from transformers import AutoModelForCausalLM, LlamaConfig

from turret_adapters.errors import AdapterUnsupported
from turret_server.engine.core import Engine
from turret_server.engine.messages import AdapterUse, Fusion, Member
from turret_server.engine.settings import EngineSettings
from turret_server.errors import StartupError
from turret_server.pipeline.fusion import FusionSpec, MemberSpec

SMALL, TUNED = MemberSpec(model="small"), MemberSpec(model="tuned")
EXPERT = MemberSpec(model="small+x")  # the small model with an adapter of its own
SPECS = {
    "proxy": FusionSpec(method="proxy", anchor=SMALL, experts=(TUNED,), weights=(1.0,)),
    "dynamic": FusionSpec(method="dynamic", anchor=SMALL, experts=(TUNED,), trace=True),
    "contrastive": FusionSpec(method="contrastive", anchor=SMALL, weights=1.0, plausible=0.1),
    "proxy by an adapter": FusionSpec(
        method="proxy", anchor=SMALL, experts=(EXPERT,), weights=(1.5,)
    ),
    "adapters of two models": FusionSpec(
        method="product", experts=(at(EXPERT, prompt=OTHER), A, SMALL), weights=(0.4, 0.3, 0.2, 0.1)
    ),
    "mixed": FusionSpec(
        method="product", experts=(at(TUNED, prompt=OTHER), A), weights=(0.5, 0.3, 0.2)
    ),
}


def save(folder, seed, vocab, context, hidden=32):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.2)
    model.save_pretrained(folder)
    return model


def known(model):
    """The main model's vocabulary, whatever this one is padded to."""
    full = transformers_model(model)
    return lambda tokens: full(tokens)[:, :VOCAB]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("auxiliary"))
    small = save(bench.folder / "small", 5, VOCAB, 64)
    bench.models["small"] = known(copy.deepcopy(small))
    bench.models["tuned"] = known(save(bench.folder / "tuned", 6, VOCAB + 16, 128))
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, lora_alpha=8)
    adapted = get_peft_model(small, lora).eval()
    adapted.save_pretrained(bench.folder / "x")
    bench.models["small+x"] = known(adapted)
    return bench


def serve(bench, **settings):
    folders = {name: str(bench.folder / name) for name in ("small", "tuned")}
    served = bench.serve(auxiliaries=folders, auxiliary_kv_bytes=1 << 20, **settings)
    expert = served.engine.stores.load(str(bench.folder / "x")).facts
    served.uses["x"] = (AdapterUse(expert.digest),)
    return served


@pytest.fixture(scope="module")
def served(bench):
    served = serve(bench)
    yield served
    assert_rooms_are_free(served)
    served.engine.close()


IDS = [-1 if i % 9 == 1 else (i * 7) % VOCAB for i in range(VOCAB - 4)]
KNOWN = [token for token in PROMPT if IDS[token] >= 0]


@pytest.mark.parametrize(
    ("method", "overlap"),
    [("sum", "off"), ("sum", "on"), ("mixture", "off"), ("contrastive", "on"), ("proxy", "off")],
)
def test_a_model_of_another_vocabulary(bench, method, overlap):
    """Some tokens have other ids there, some none: they are banned."""
    served = serve(bench, auxiliary_ids={"small": tuple(IDS)}, overlap=overlap)
    prompt = [IDS[token] for token in KNOWN] + [VOCAB - 1]  # which no token of the main one means
    small = bench.models["small"]

    def translated(tokens):
        ids = [*tokens[: len(prompt)], *(IDS[token] for token in tokens[len(prompt) :])]
        logits = np.full((len(ids), VOCAB), -np.inf)
        logits[:, : len(IDS)] = np.where(np.array(IDS) < 0, -np.inf, small(ids)[:, IDS])
        return logits

    other = at(SMALL, prompt=prompt)
    spec = {
        "sum": FusionSpec(method="sum", experts=(other,), weights=(0.5, 0.7)),
        "mixture": FusionSpec(method="mixture", experts=(A, other), weights=(0.3, 0.3, 0.4)),
        "contrastive": FusionSpec(method="contrastive", anchor=other, weights=0.3, plausible=0.1),
        "proxy": FusionSpec(method="proxy", anchor=other, experts=(A,), weights=(0.5,)),
    }[method]
    answer = served.run([served.ask("x", spec, max_tokens=12)])["x"]
    assert all(token < len(IDS) and IDS[token] >= 0 for token in answer.tokens)
    models = {"base": bench.models["base"], "a": bench.models["a"], "small": translated}
    served._models = models
    with np.errstate(invalid="ignore"):
        served.check(spec, answer)
    assert_rooms_are_free(served)
    served.engine.close()


def test_dynamic_weights_of_a_model_of_another_vocabulary(bench):
    """A weight of 0 lifts no ban."""
    served = serve(bench, auxiliary_ids={"small": tuple(IDS), "tuned": tuple(IDS)})
    prompt = [IDS[token] for token in KNOWN]
    spec = FusionSpec(
        method="dynamic",
        anchor=at(SMALL, prompt=prompt),
        experts=(at(TUNED, prompt=prompt),),
        range=1e-6,
    )
    requests = [served.ask(str(i), spec, temperature=3.0, seed=i, max_tokens=40) for i in range(6)]
    for answer in served.run(requests).values():
        assert len(answer.tokens) == 40
        assert all(token < len(IDS) and IDS[token] >= 0 for token in answer.tokens)
    served.engine.close()


def assert_rooms_are_free(served):
    for room in served.engine.scheduler._rooms.values():
        assert room.blocks.num_free == room.blocks.num_blocks


@pytest.fixture(scope="module")
def alone(served):
    return {name: served.run([served.ask(name, spec)])[name] for name, spec in SPECS.items()}


@pytest.mark.parametrize("name", SPECS)
def test_members_run_models_of_their_own(served, alone, name):
    served.check(SPECS[name], alone[name])


def test_in_one_batch_with_others_in_chunks_and_after_preemption(bench, alone):
    block = 4 * 512
    for settings in (
        {},
        {"max_step_tokens": 16},
        {"kv_block_tokens": 4, "kv_cache_bytes": 24 * block},
        {"overlap": "on"},
        {"overlap": "on", "kv_block_tokens": 4, "kv_cache_bytes": 24 * block},
    ):
        served = serve(bench, **settings)
        plain = [served.ask(f"plain {m}", None, m) for m in ("base", "a")]
        answers = served.run([*plain, *(served.ask(n, s) for n, s in SPECS.items())])
        assert_same({name: answers[name] for name in SPECS}, alone)
        assert_rooms_are_free(served)
        served.engine.close()


def test_an_auxiliary_keeps_its_own_prefixes(bench):
    served = serve(bench)
    scheduler = served.engine.scheduler
    spec = FusionSpec(method="product", experts=(at(TUNED, prompt=OTHER),), weights=(0.5, 0.5))
    first = served.run([served.ask("x", spec, prompt=OTHER)])["x"]
    assert scheduler.prefix_hits == 0  # the same tokens in two models
    again = served.run([served.ask("y", spec, prompt=OTHER)])["y"]
    assert scheduler.prefix_hits == 2 * 32
    assert again.tokens == first.tokens
    served.engine.close()


def test_the_shortest_context_limits_the_answer(served):
    answer = served.run([served.ask("x", SPECS["contrastive"], max_tokens=100)])["x"]
    assert len(answer.tokens) == 64 - len(PROMPT)
    assert answer.finish_reason == "length"


def test_ready_tells_of_them(served):
    infos = served.engine.ready.auxiliaries
    assert {name: info.max_model_len for name, info in infos.items()} == {"small": 64, "tuned": 128}


def test_cancelled_members_leave_nothing_in_any_room(served):
    served.engine.submit(served.ask("x", SPECS["proxy"], max_tokens=40))
    for _ in range(3):
        served.engine.step()
    pool = served.engine.scheduler._rooms["small"].blocks
    assert pool.num_free < pool.num_blocks
    served.engine.cancel("x")
    served.assert_clean()
    assert_rooms_are_free(served)


def test_an_adapter_belongs_to_the_models_that_it_fits(bench):
    served = serve(bench)
    stores = served.engine.stores
    main, expert = (stores.load(str(bench.folder / name)) for name in "ax")
    assert (main.num_layers, set(main.unfit)) == ({"": 2}, {"small", "tuned"})
    assert (expert.num_layers, set(expert.unfit)) == ({"small": 1, "tuned": 1}, {""})
    assert expert.facts.digest not in stores.resident()  # nobody has asked for it
    stores.hold([main.facts.digest, expert.facts.digest])
    served.run([served.ask("y", SPECS["proxy by an adapter"])])
    assert expert.facts.digest in stores["small"].resident()
    stores.forget(expert.facts.digest)
    assert all(expert.facts.digest not in stores[m].loaded() for m in ("", "small", "tuned"))
    served.engine.close()


def test_holding_is_done_for_all_models_or_for_none(bench):
    served = serve(bench, max_resident_adapters=1)
    stores, held = served.engine.stores, []
    a, b, x = (stores.load(str(bench.folder / name)).facts.digest for name in "abx")
    stores.hold([a])
    with pytest.raises(AdapterUnsupported):
        stores.hold([x, a, b])
    for model in ("", "small"):
        held.append(stores[model]._residency.records.held())
    assert held == [[a], []]
    served.engine.close()


def test_an_adapter_that_fits_nothing_is_refused_as_the_main_model_refuses_it(bench, tmp_path):
    other = save(tmp_path / "other", 7, VOCAB, 64, hidden=48)
    get_peft_model(other, LoraConfig(task_type="CAUSAL_LM", r=4)).save_pretrained(tmp_path / "y")
    served = serve(bench)
    with pytest.raises(AdapterUnsupported, match="64"):
        served.engine.stores.load(str(tmp_path / "y"))
    served.engine.close()


@pytest.mark.parametrize(
    ("member", "kind"),
    [
        (Member(prompt=[1], model="nope"), "Unprocessable"),
        (Member(prompt=[1], model="small", adapters=(AdapterUse("0"),)), "NotFound"),
    ],
    ids=["model", "adapter"],
)
def test_members_that_no_auxiliary_serves_are_refused(served, member, kind):
    fusion = Fusion(members=(member,), terms=(0, 1), weights=(1.0, 1.0))
    event = served.engine.submit(msgspec.structs.replace(served.ask("x"), fusion=fusion))
    assert event.error.kind == kind
    served.assert_clean()


def test_what_cannot_be_served_is_refused(bench):
    settings = EngineSettings(
        model=str(bench.folder / "base"),
        dtype="float32",
        auxiliaries={"small": str(bench.folder / "small")},
        auxiliary_kv_bytes=100,
    )
    with pytest.raises(StartupError, match="'small' has no room"):
        Engine(settings)
    beyond = {"auxiliary_ids": {"small": (0, VOCAB)}, "auxiliary_kv_bytes": 1 << 20}
    with pytest.raises(StartupError, match=f"token {VOCAB}, and its embedding {VOCAB} rows"):
        Engine(msgspec.structs.replace(settings, **beyond))
    with pytest.raises(StartupError, match="2 processes"):
        Engine(msgspec.structs.replace(settings, tensor_parallel=2))
