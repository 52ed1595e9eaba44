"""Fused requests in the engine: every method against transformers and numpy, alone and together."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.fusion_reference import check_answer, message, transformers_model
from transformers import AutoModelForCausalLM, LlamaConfig

from turret_server.engine.core import Engine
from turret_server.engine.messages import AdapterUse, EngineRequest, Fusion, Member, Sampling
from turret_server.engine.settings import EngineSettings
from turret_server.errors import BadRequest
from turret_server.pipeline.fusion import FusionSpec, MemberSpec

VOCAB = 160
PROMPT = [5, 17, 99, 3, 42, 8, 64, 21, 9, 77, 11]
OTHER = [(i * 37 + 11) % VOCAB for i in range(45)]  # more than a KV block
BASE, A, B = MemberSpec(model="base"), MemberSpec(model="a"), MemberSpec(model="b")


def at(member: MemberSpec, **changes: Any) -> MemberSpec:
    return replace(member, **changes)


# Every number is written out: the reference knows no defaults.
SPECS = {
    "proxy": FusionSpec(method="proxy", anchor=BASE, experts=(A,), weights=(1.5,)),
    "proxy of two": FusionSpec(method="proxy", anchor=BASE, experts=(A, B), weights=(1.5, -0.5)),
    "ensemble": FusionSpec(method="ensemble", anchor=A, experts=(B,), weights=(0.7,)),
    "dexperts": FusionSpec(method="dexperts", anchor=A, experts=(B,), weights=2.0, nucleus=0.9),
    "dexperts without an expert": FusionSpec(
        method="dexperts", anchor=A, weights=0.5, nucleus=0.99
    ),
    "dexperts without an anchor": FusionSpec(
        method="dexperts", experts=(A,), weights=3.0, nucleus=0.5
    ),
    "contrastive": FusionSpec(
        method="contrastive", anchor=at(A, temperature=0.5), weights=1.0, plausible=0.1
    ),
    "guidance": FusionSpec(method="guidance", anchor=MemberSpec(prompt=OTHER), weights=1.5),
    "guidance of another model": FusionSpec(
        method="guidance", anchor=at(A, prompt=OTHER[:7]), weights=3.0, plausible=0.01
    ),
    "dynamic": FusionSpec(method="dynamic", anchor=A, experts=(B,), trace=True),
    "dynamic, the grid": FusionSpec(
        method="dynamic", anchor=A, experts=(B,), search="grid", trace=True
    ),
    "dynamic of two": FusionSpec(method="dynamic", anchor=BASE, experts=(A, B), trace=True),
    "dynamic, joint": FusionSpec(
        method="dynamic", anchor=BASE, experts=(A, B), joint=True, trace=True
    ),
    "sum": FusionSpec(method="sum", experts=(A, B), weights=(0.5, 2.0, -1.0)),
    "product": FusionSpec(
        method="product", experts=(A, B), weights=(0.2, 0.5, 0.3), temperature=0.7
    ),
    "mixture": FusionSpec(method="mixture", experts=(A, B), weights=(0.2, 0.5, 0.3)),
    "mixture of prompts": FusionSpec(
        method="mixture", experts=(at(A, prompt=OTHER), BASE), weights=(1.0, 1.0, 0.0)
    ),
    "one model at two temperatures": FusionSpec(
        method="sum", experts=(MemberSpec(temperature=2.0),), weights=(1.5, -0.5)
    ),
}


@dataclass
class Answer:
    tokens: list[int] = field(default_factory=list)
    entries: list[Any] = field(default_factory=list)
    weights: list[list[float]] = field(default_factory=list)
    finish_reason: str | None = None


class Bench:
    """A tiny base with two adapters, in transformers and in an engine."""

    def __init__(self, folder):
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
        )
        base = AutoModelForCausalLM.from_config(config).eval()
        for name, parameter in base.named_parameters():
            parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.15)
        base.save_pretrained(folder / "base")
        self.folder, self.models = folder, {"base": transformers_model(base)}
        for seed, name in enumerate("ab"):
            torch.manual_seed(seed)
            lora = LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, lora_alpha=8)
            adapted = get_peft_model(copy.deepcopy(base), lora)
            adapted.save_pretrained(folder / name)
            self.models[name] = transformers_model(adapted.eval())

    def serve(self, **settings):
        return Served(self, **settings)


class Served:
    """An engine with both adapters, stepped by the test."""

    def __init__(self, bench, **settings):
        self._wake, self._models = threading.Event(), bench.models
        settings = {"kv_cache_bytes": 4 << 20, "dtype": "float32", **settings}
        self.engine = Engine(
            EngineSettings(model=str(bench.folder / "base"), **settings), wake=self._wake.set
        )
        store = self.engine.store
        self.uses = {"base": ()} | {
            name: (AdapterUse(store.load(bench.folder / name).result().digest),) for name in "ab"
        }

    def ask(self, name, spec=None, model="base", prompt=PROMPT, **sampling):
        sampling = {"temperature": 0.0, "max_tokens": 5, "logprobs": 3, **sampling}
        return EngineRequest(
            id=name,
            prompt=prompt,
            sampling=Sampling(**sampling),
            adapters=self.uses[model],
            fusion=None if spec is None else message(spec, model, prompt, self.uses),
        )

    def run(self, requests, each_step=lambda: None):
        answers = {request.id: Answer() for request in requests}
        for request in requests:
            assert self.engine.submit(request) is None
        while not self.engine.idle:
            self._wake.clear()
            events = self.engine.step()
            each_step()
            if not events and not self.engine.scheduler.running:
                self._wake.wait(timeout=30)
            for event in events:
                assert event.error is None, event.error
                answer = answers[event.id]
                answer.tokens += event.tokens
                answer.entries += event.logprobs or []
                answer.weights += [e.weights for e in event.logprobs or [] if e.weights]
                answer.finish_reason = event.finish_reason
        self.assert_clean()
        return answers

    def assert_clean(self):
        scheduler = self.engine.scheduler
        assert all(self.engine.stores[m].num_pins == 0 for m in self.engine.scheduler._rooms)
        assert self.engine.stats.kv_blocks_used == 0
        assert len(scheduler._table_rows) == scheduler.limits.max_running
        assert not scheduler._by_id

    def check(self, spec, answer, model="base", prompt=PROMPT, greedy=True):
        """Against the reference; logits of up to 20 in float32, weighted by up to 3."""
        names = [model, *(m.model or model for m in spec.members)]
        prompts = [prompt, *(m.prompt or prompt for m in spec.members)]
        models = [self._models[name] for name in names]
        weights = answer.weights if spec.method == "dynamic" else None
        tokens, entries = answer.tokens, answer.entries
        check_answer(spec, models, prompts, tokens, entries, weights, 1e-4, greedy=greedy)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small are no work for two, which would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("fusion"))


@pytest.fixture(scope="module")
def served(bench):
    served = bench.serve()
    yield served
    served.engine.close()


@pytest.fixture(scope="module")
def alone(served):
    return {name: served.run([served.ask(name, spec)])[name] for name, spec in SPECS.items()}


@pytest.mark.parametrize("name", SPECS)
def test_a_fused_request_is_what_the_formula_says(served, alone, name):
    served.check(SPECS[name], alone[name])


def test_the_methods_differ(alone):
    """So that the equalities of this file mean something."""
    assert len({tuple(answer.tokens) for answer in alone.values()}) > len(SPECS) // 2


def assert_same(found, expected):
    """Sums in another order. Dynamic weights are searched to 1e-3 of their loss, where another last
    bit may end the search at another weight.
    """
    for name, answer in found.items():
        tolerance = 5e-3 if name.startswith("dynamic") else 1e-4
        assert answer.tokens == expected[name].tokens, name
        for own, other in zip(answer.entries, expected[name].entries, strict=True):
            assert own.logprob == pytest.approx(other.logprob, abs=tolerance), name


def ordinary(served):
    asks = [served.ask(f"plain {m}", None, m, max_tokens=7) for m in ("base", "a", "b")]
    return [*asks, served.ask("drawn", None, "a", prompt=OTHER, temperature=1.0, seed=3)]


def test_all_methods_and_ordinary_requests_in_one_batch(served, bench, alone):
    plain = {r.id: served.run([r])[r.id] for r in ordinary(served)}
    fresh = bench.serve()
    asks = [fresh.ask(name, spec) for name, spec in SPECS.items()]
    mixed = [r for pair in zip(asks, ordinary(fresh) * 5, strict=False) for r in pair][:22]
    mixed = list({r.id: r for r in [*mixed, *asks, *ordinary(fresh)]}.values())
    assert_same(fresh.run(mixed), alone | plain)
    fresh.engine.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"max_step_tokens": 16},
        {"kv_block_tokens": 4, "kv_cache_bytes": 70 * 4 * 512, "max_model_len": 64},
        {"max_running": 4},
    ],
    ids=["chunks", "preemption", "few rows"],
)
def test_how_it_is_scheduled_changes_nothing(bench, served, alone, settings):
    tight = bench.serve(**settings)
    asks = [tight.ask(name, spec) for name, spec in SPECS.items()]
    assert_same(tight.run(asks), alone)
    if "kv_block_tokens" in settings:
        assert tight.engine.stats.preemptions > 0
    tight.engine.close()


def test_members_share_prefixes_with_ordinary_requests(bench):
    served = bench.serve()
    asks = [served.ask(m, None, m, prompt=OTHER) for m in ("base", "a")]
    served.run(asks)
    scheduler = served.engine.scheduler
    before = scheduler.prefix_hits
    spec = FusionSpec(method="guidance", anchor=at(A, prompt=OTHER), weights=1.5)
    answer = served.run([served.ask("fused", spec, "base", prompt=OTHER)])["fused"]
    assert scheduler.prefix_hits - before == 2 * 32
    served.check(spec, answer, prompt=OTHER)
    # And the other way round.
    before = scheduler.prefix_hits
    served.run([served.ask("again", None, "a", prompt=[*OTHER, *answer.tokens])])
    assert scheduler.prefix_hits - before == 32
    served.engine.close()


def test_equal_members_run_once(served):
    request = served.ask("x", SPECS["proxy"])  # base + 1.5 (a - base)
    assert (len(request.fusion.members), request.fusion.terms) == (1, (0, 0, 1))
    request = served.ask("x", SPECS["mixture of prompts"])  # the last has weight 0
    assert (len(request.fusion.members), request.fusion.terms) == (1, (0, 1))
    request = served.ask("x", SPECS["one model at two temperatures"])
    assert (len(request.fusion.members), request.fusion.terms) == (0, (0, 0))


def test_sampling_works_on_what_was_fused(served):
    """Penalties, biases and stop tokens; draws by seed, however they are batched."""
    spec = SPECS["proxy of two"]
    first = served.run([served.ask("x", spec)])["x"].tokens[0]
    biased = served.ask("biased", spec, logit_bias={first: -100.0})
    stopped = served.ask("stopped", spec, stop_token_ids=(first,))
    drawn = [served.ask(f"drawn {i}", spec, temperature=1.0, seed=i, max_tokens=8) for i in (1, 2)]
    answers = served.run([biased, stopped, *drawn])
    assert answers["biased"].tokens[0] != first
    assert (answers["stopped"].tokens, answers["stopped"].finish_reason) == ([first], "stop")
    assert answers["drawn 1"].tokens != answers["drawn 2"].tokens
    for request in drawn:
        served.check(spec, answers[request.id], greedy=False)
        assert served.run([request])[request.id].tokens == answers[request.id].tokens


def test_a_trace_is_given_to_those_who_ask(served, alone):
    assert all(row[0] == 1 and row[1] == -row[2] for row in alone["dynamic"].weights)
    assert len(alone["dynamic"].weights) == len(alone["dynamic"].tokens)
    assert alone["proxy"].weights == []
    spec = replace(SPECS["dynamic of two"], trace=False)
    assert served.run([served.ask("x", spec)])["x"].weights == []
    for row in alone["dynamic of two"].weights:
        assert sum(w != 0 for w in row[2:]) <= 1


def test_members_take_their_steps_together(bench):
    """In chunks of 16 tokens, 11 and 45 of prompt; a decode step has both rows or none."""
    served = bench.serve(max_step_tokens=16)
    spec, lengths = SPECS["guidance"], []

    def look():
        for lead in served.engine.scheduler.running:
            done = [m.num_computed - m.num_prompt for m in lead.members]
            lengths.append(done)
            assert [m.tokens[m.num_prompt :] for m in lead.members].count([]) in (0, 2)
            if lead.num_output:
                assert len(set(done)) == 1

    served.run([served.ask("x", spec, max_tokens=6)], look)
    # The first waits at its last token for the other.
    assert lengths[:4] == [[-1, -39], [-1, -23], [-1, -7], [0, 0]]
    served.engine.close()


@pytest.mark.parametrize("when", ["in prompts", "decoding", "waiting"])
def test_cancelled_members_leave_nothing(bench, when):
    served = bench.serve(max_step_tokens=16, max_running=3)
    engine = served.engine
    served.run([served.ask("warm", None, "a")])
    request = served.ask("x", SPECS["guidance of another model"], prompt=OTHER, max_tokens=20)
    if when == "waiting":
        engine.submit(served.ask("first", SPECS["guidance"], max_tokens=40))
        engine.step()
    engine.submit(request)
    for _ in range({"in prompts": 2, "decoding": 9, "waiting": 1}[when]):
        engine.step()
    lead = engine.scheduler._by_id["x"]
    assert (lead.num_output > 0) == (when == "decoding")
    assert (lead.table_row >= 0) == (when != "waiting")
    for name in ("x", "first", "x"):
        engine.cancel(name)
    served.assert_clean()
    engine.close()


def test_a_deadline_and_a_broken_grammar_end_all_members(bench):
    served = bench.serve()
    engine = served.engine
    served.run([served.ask("warm", None, "a")])
    late = msgspec.structs.replace(
        served.ask("late", SPECS["proxy"], max_tokens=90), deadline_s=0.0
    )
    engine.submit(late)
    (event,) = engine.step()
    assert event.finish_reason == "deadline"
    served.assert_clean()

    class Broken:
        finished = False

        def fill_mask(self, mask):
            raise BadRequest("it broke")

    engine.submit(served.ask("broken", SPECS["proxy"]))
    engine.scheduler._by_id["broken"].grammar = Broken()
    (event,) = engine.step()
    assert (event.finish_reason, event.error.what) == ("error", "it broke")
    served.assert_clean()
    engine.close()


@pytest.mark.parametrize(
    ("settings", "fields", "why"),
    [
        ({"max_running": 1}, {}, "a step has room for 1"),
        ({"kv_cache_bytes": 4 * 32 * 512}, {"max_tokens": 90}, "it has 4"),
    ],
    ids=["rows", "blocks"],
)
def test_members_that_never_fit_are_refused(bench, settings, fields, why):
    served = bench.serve(**settings)
    event = served.engine.submit(served.ask("x", SPECS["proxy"], **fields))
    assert event.finish_reason == "error"
    assert why in event.error.why
    served.assert_clean()
    served.engine.close()


def test_a_member_with_an_unknown_adapter_is_refused(served):
    fusion = Fusion(
        members=(Member(prompt=PROMPT, adapters=(AdapterUse("0" * 64),)),),
        terms=(0, 1),
        weights=(1.0, 1.0),
    )
    request = msgspec.structs.replace(served.ask("x"), fusion=fusion)
    event = served.engine.submit(request)
    assert event.error.kind == "NotFound"
    served.assert_clean()
