"""In bfloat16, as it is served: whatever shares the batch, an answer is the same to the last bit.

The native kernels add up each row in an order of its own, so a row does not depend on how many
others there are, on how its prompt was cut, or on whether the step was recorded or run eagerly.
"""

from __future__ import annotations

import pytest

from turret_kernels import native
from turret_server.models.decoder import Decoder

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(native.lib is None, reason="torch's own products depend on the batch"),
]

NEW_TOKENS = 16
QUESTIONS = [
    "Write one sentence about the sea.",
    "A village lay at the foot of a mountain, and in it lived a clockmaker. Continue the story, "
    "please, and mind that it is told to a child who asks for it for the tenth time today.",
    "What is 17 plus 25? Explain.",
]


@pytest.fixture(scope="module")
def engine(make_engine):
    return make_engine()


@pytest.fixture(scope="module")
def requests(engine, chat_ids, adapters):
    """Answers of different length, so that the batch shrinks; all but three are drawn."""
    return [
        engine.request(
            model,
            chat_ids(QUESTIONS[i % len(QUESTIONS)]),
            max_tokens=NEW_TOKENS - i % 4,
            temperature=0.0 if i % 3 == 2 else 0.9,
            seed=i,
        )
        for i, model in enumerate([*adapters, "base"])
    ]


TABLES = [
    {"q_proj": (0.5,) * 10 + (1.5,) * 20, "v_proj": -0.5},
    {"o_proj": 0.0, "down_proj": tuple(i / 30 for i in range(30))},
]


def test_with_weights_by_layer(engine, requests, together, chat_ids, adapters):
    """They are recorded too, in graphs of their own, and change nothing for the others."""
    name = next(iter(adapters))
    tabled = [
        engine.request(name, chat_ids(q), weight=table, max_tokens=NEW_TOKENS, temperature=0.0)
        for table, q in zip(TABLES, QUESTIONS, strict=False)
    ]
    answers = engine.run([*requests[:4], *tabled])
    assert_identical({r.id: answers[r.id] for r in requests[:4]}, together)
    for request in tabled:
        assert_identical(engine.run([request]), answers)
    plain = engine.run([engine.request(name, chat_ids(QUESTIONS[0]), max_tokens=1)])[name]
    assert plain.entries[0] != answers[tabled[0].id].entries[0]


@pytest.fixture(scope="module")
def together(engine, requests):
    return engine.run(requests)


def assert_identical(answers, expected):
    for model, answer in answers.items():
        assert answer.tokens == expected[model].tokens, model
        assert answer.entries == expected[model].entries, model


def test_alone(engine, requests, together):
    for request in requests:
        assert_identical(engine.run([request]), together)


def test_after_other_traffic(engine, requests, together):
    """Recorded steps must hold nothing of the steps between them."""
    for alone in (requests[0], requests[2], requests[-1]):
        engine.run([alone])
        assert_identical(engine.run(requests[:4]), together)


def test_with_recorded_graphs_and_without(make_engine, engine, requests, together):
    assert engine.engine._runner._graphs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "has_graphs", False)
        assert_identical(make_engine().run(requests), together)


def test_with_prompts_cut_into_chunks(make_engine, requests, together):
    assert_identical(make_engine(max_step_tokens=16).run(requests), together)


def test_with_fewer_slots_than_adapters(make_engine, requests, together):
    """Adapters come and go between the steps; the slot of one becomes that of another."""
    engine = make_engine(max_resident_adapters=3, adapter_rank_rows=64)
    for _ in range(2):
        assert_identical(engine.run(requests), together)


def test_with_preemption(make_engine, engine, chat_ids, adapters):
    prompt = chat_ids(QUESTIONS[1])
    # Each needs a second block of 32 soon: more than there are, with enough for each alone.
    requests = [
        engine.request(model, prompt[: 24 + i % 4], max_tokens=NEW_TOKENS, temperature=0.0)
        for i, model in enumerate([*adapters, "base"])
    ]
    block_bytes = engine.engine.decoder.kv_bytes_per_token * 32
    small = make_engine(kv_cache_bytes=12 * block_bytes, max_model_len=64)
    answers = small.run(requests)
    assert small.engine.stats.preemptions > 0
    assert_identical(answers, engine.run(requests))
