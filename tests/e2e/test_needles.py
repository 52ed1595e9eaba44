"""A fact somewhere in a long prompt: the same answer wherever it lies and however it is computed.

Cold and alone, from cached prefixes, or cut into chunks in a batch with others.
`TURRET_NEEDLES=100` tries more of them.
"""

from __future__ import annotations

import os

import msgspec
import pytest

from turret_kernels import native

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(native.lib is None, reason="torch's own products depend on the batch"),
]

NEEDLES = int(os.environ.get("TURRET_NEEDLES", "16"))
SENTENCES = 24
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
ROOMS = ["kitchen", "library", "garden", "cellar", "attic", "workshop", "stable"]


def haystack(number: int) -> str:
    """Sentences that all prompts share but for one, at another place in each."""
    lines = [
        f"On {DAYS[i % 7]} visitors walked through the {ROOMS[i * 3 % 7]} and wrote {i} letters."
        for i in range(SENTENCES)
    ]
    lines.insert(number * 7 % (SENTENCES + 1), f"The secret number is {1000 + 37 * number}.")
    return " ".join([*lines, "What is the secret number?"])


@pytest.fixture(scope="module")
def requests(make_engine, chat_ids, adapters):
    engine, names = make_engine(), ["base", *list(adapters)[:3]]
    made = [
        engine.request(names[i % 4], chat_ids(haystack(i)), max_tokens=10, temperature=0.0)
        for i in range(NEEDLES)
    ]
    requests = [
        msgspec.structs.replace(request, id=str(i), cache_namespace=str(i))
        for i, request in enumerate(made)
    ]
    return engine, requests


@pytest.fixture(scope="module")
def cold(requests):
    engine, cold = requests
    answers = [engine.run([request])[request.id] for request in cold]
    assert [answer.cached_tokens for answer in answers] == [0] * NEEDLES
    return [answer.tokens for answer in answers]


def test_the_prompts_are_worth_reading(cold, tokenizer):
    """Most answers say the number, so a token that was misread would show."""
    said = [str(1000 + 37 * i) in tokenizer.decode(tokens) for i, tokens in enumerate(cold)]
    assert sum(said) > NEEDLES / 2


def test_from_cached_prefixes(requests, cold):
    """They end where the needle begins: at another block in each."""
    engine, requests = requests
    shared = [msgspec.structs.replace(request, cache_namespace="") for request in requests]
    answers = [engine.run([request])[request.id] for request in shared]
    assert len({answer.cached_tokens for answer in answers}) > min(4, NEEDLES / 4)
    assert [answer.tokens for answer in answers] == cold
    again = engine.run(shared[-12:])  # whole prompts: the cache holds some twenty
    assert all(answer.cached_tokens > 300 for answer in again.values())
    assert [answer.tokens for answer in again.values()] == cold[-12:]


def test_in_chunks_beside_others(make_engine, requests, cold):
    engine = make_engine(max_step_tokens=48)
    answers = engine.run(requests[1])
    assert [answers[request.id].tokens for request in requests[1]] == cold
