"""A model with sliding windows in an engine: long prompts, in chunks, continued from the cache."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig

from turret_server.engine.core import Engine
from turret_server.engine.messages import EngineRequest, Sampling
from turret_server.engine.settings import EngineSettings

WINDOW, NEW_TOKENS = 24, 8
LONG = [(i * 37 + 11) % 128 for i in range(150)]
PROMPTS = [LONG, [*LONG[:100], 3, 1, 4], LONG[:20]]  # the second begins as the first


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma")
    torch.manual_seed(1)
    config = Gemma3TextConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        sliding_window=WINDOW,
        sliding_window_pattern=2,
        tie_word_embeddings=False,  # tied, so small a model repeats what it reads
    )
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def greedy(folder):
    """What transformers answers to each prompt."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return [
        model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
        )[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]


def test_it_answers_as_transformers_does(folder, greedy):
    wake = threading.Event()
    engine = Engine(
        EngineSettings(
            model=str(folder), dtype="float32", kv_cache_bytes=4 << 20, max_step_tokens=40
        ),
        wake=wake.set,
    )
    try:
        for number, (prompt, expected) in enumerate(zip(PROMPTS, greedy, strict=True)):
            sampling = Sampling(temperature=0.0, max_tokens=NEW_TOKENS)
            request = EngineRequest(id=str(number), prompt=prompt, sampling=sampling)
            assert engine.submit(request) is None
            tokens, cached = [], 0
            while not engine.idle:
                for event in engine.step():
                    assert event.error is None
                    tokens += event.tokens
                    cached += event.cached_tokens
            assert tokens == expected
            assert cached >= 3 * WINDOW if number == 1 else cached < len(LONG) / 2
    finally:
        engine.store.close()
