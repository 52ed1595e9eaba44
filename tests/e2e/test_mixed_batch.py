"""Eight adapters and the base in one batch, in float32: each gets what it gets alone, and what
transformers with PEFT gives it.

Tolerances are on log-probabilities. Logits reach 42, where neighbouring float32 numbers lie
3.8e-6 apart, and torch's matrix products add in another order for another number of rows: 1.5e-6
on average, 8e-6 at most on one processor and 1.2e-5 on another. transformers takes another order in
attention, norms and rotations too, and PEFT rounds between its two products: 2e-5 at most.
"""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NEW_TOKENS = 8
QUESTIONS = [
    "Write one sentence about the sea.",
    "A village lay at the foot of a mountain, and in it lived a clockmaker. Continue the story, "
    "please, and mind that it is told to a child who asks for it for the tenth time today.",
    "What is 17 plus 25? Explain.",
    "Name a river.",
]


@pytest.fixture(scope="module")
def engine(make_engine):
    return make_engine(dtype="float32")


@pytest.fixture(scope="module")
def requests(engine, chat_ids, adapters):
    """Nine models, four prompts of different length; every third answer is drawn, not greedy."""
    return [
        engine.request(
            model,
            chat_ids(QUESTIONS[i % len(QUESTIONS)]),
            max_tokens=NEW_TOKENS,
            temperature=0.7 if i % 3 == 2 else 0.0,
            seed=i,
        )
        for i, model in enumerate([*adapters, "base"])
    ]


@pytest.fixture(scope="module")
def together(engine, requests):
    return engine.run(requests)


def assert_same(answers, expected):
    for model, answer in answers.items():
        assert answer.tokens == expected[model].tokens, model
    errors = [
        abs(own - other)
        for model, answer in answers.items()
        for own, other in zip(answer.logprobs, expected[model].logprobs, strict=True)
    ]
    assert max(errors) < 2e-5


def test_each_gets_what_it_gets_alone(make_engine, requests, together):
    # An engine of its own: in the other the prompts are cached already.
    alone_engine = make_engine(dtype="float32")
    alone = {}
    for request in requests:
        alone |= alone_engine.run([request])
    assert all(answer.cached_tokens == 0 for answer in alone.values())
    assert_same(together, alone)


def test_each_gets_what_peft_gives_it(demo_folder, adapters, requests, together):
    """One pass over prompt and answer: it would have chosen each token, as likely as we said."""
    model = AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32).eval()
    names = list(adapters)
    peft = PeftModel.from_pretrained(model, str(adapters[names[0]]), adapter_name=names[0])
    for name in names[1:]:
        peft.load_adapter(str(adapters[name]), adapter_name=name)
    for request in requests:
        answer = together[request.id]
        tokens = torch.tensor([request.prompt + answer.tokens[:-1]])
        with torch.inference_mode():
            if request.id == "base":
                with peft.disable_adapter():
                    logits = peft(tokens).logits[0, len(request.prompt) - 1 :]
            else:
                peft.set_adapter(request.id)
                logits = peft(tokens).logits[0, len(request.prompt) - 1 :]
        if request.sampling.temperature == 0:
            assert logits.argmax(-1).tolist() == answer.tokens, request.id
        chosen = logits.log_softmax(-1).gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.logprobs), chosen, atol=1e-4, rtol=0)


def test_the_adapters_differ(together, requests):
    """So that the equalities of this file mean something."""
    for one, other in combinations(requests, 2):
        if one.prompt == other.prompt:
            likeliest = [together[request.id].entries[0].top[0][1] for request in (one, other)]
            assert abs(likeliest[0] - likeliest[1]) > 0.01, (one.id, other.id)


def test_weights_by_layer(engine, make_engine, requests, together, adapters):
    """Two tables, each alone and beside the nine."""
    name, tables = (
        next(iter(adapters)),
        [
            {"q_proj": (0.5,) * 10 + (1.5,) * 20, "v_proj": -0.5},
            {"o_proj": 0.0, "down_proj": tuple(i / 30 for i in range(30))},
        ],
    )
    tabled = [
        engine.request(name, requests[0].prompt, weight=t, max_tokens=NEW_TOKENS, temperature=0.0)
        for t in tables
    ]
    answers = engine.run([*requests, *tabled])
    assert_same({r.id: answers[r.id] for r in requests}, together)
    alone = make_engine(dtype="float32")
    for request in tabled:
        assert_same(alone.run([request]), answers)


def test_a_cached_prefix_changes_nothing(engine, requests, together):
    again = engine.run(requests)
    assert any(answer.cached_tokens > 0 for answer in again.values())
    assert_same(again, together)


def test_prompts_cut_into_chunks_change_nothing(make_engine, requests, together):
    engine = make_engine(dtype="float32", max_step_tokens=16)
    assert sum(len(request.prompt) for request in requests) > 16 * len(requests)
    assert_same(engine.run(requests), together)


def test_preemption_changes_nothing(make_engine, engine, requests, together):
    block_bytes = engine.engine.decoder.kv_bytes_per_token * 8
    # Fewer blocks than the nine need at their ends, enough for each alone.
    small = make_engine(
        dtype="float32", kv_block_tokens=8, kv_cache_bytes=40 * block_bytes, max_model_len=128
    )
    answers = small.run(requests)
    assert small.engine.stats.preemptions > 0
    assert_same(answers, together)
