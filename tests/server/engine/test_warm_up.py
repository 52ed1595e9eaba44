"""Before the first request: every number of rows has been met, and nothing is left of it."""

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from turret_server.engine.core import Engine
from turret_server.engine.messages import EngineRequest, Sampling
from turret_server.engine.settings import EngineSettings
from turret_server.engine.warm_up import warm_up


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    folder = tmp_path_factory.mktemp("tiny")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return EngineSettings(model=str(folder), dtype="float32", kv_cache_bytes=4 << 20, max_running=6)


def answer(engine):
    engine.submit(
        EngineRequest(id="a", prompt=[1, 2, 3], sampling=Sampling(temperature=0.0, max_tokens=8))
    )
    tokens = []
    while not engine.idle:
        tokens += [token for event in engine.step() for token in event.tokens]
    return tokens


def test_every_number_of_rows_comes_up(settings, monkeypatch):
    engine, rows = Engine(settings), set()
    try:
        forward = engine._runner.forward

        def watched(batch):
            rows.add(len(batch.attention.context_len))
            return forward(batch)

        monkeypatch.setattr(engine._runner, "forward", watched)
        warm_up(engine)
        assert rows == {1, 2, 3, 4, 5, 6}
        assert engine.idle
        assert engine.stats.kv_blocks_used == 0
    finally:
        engine.close()


@pytest.mark.parametrize("max_model_len", [0, 5])
def test_answers_are_what_they_are_without(settings, max_model_len):
    engines = [Engine(msgspec.structs.replace(settings, max_model_len=max_model_len)) for _ in "ab"]
    try:
        warm_up(engines[1])
        assert answer(engines[0]) == answer(engines[1]) != []
    finally:
        for engine in engines:
            engine.close()
