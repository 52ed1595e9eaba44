"""The processes of a tensor-parallel engine: what they are told, and how they end."""

from __future__ import annotations

import asyncio
import os
import signal

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from turret_adapters.components import (
    LowRank,
    Offset,
    Scale,
    SparseDelta,
    TernaryLowRank,
    Threshold,
)
from turret_adapters.plan import RowUse
from turret_adapters.site_weights import SiteWeights
from turret_adapters.spec import Module, Site
from turret_server.engine.core import Engine
from turret_server.engine.follower import Follower
from turret_server.engine.link import EngineLink
from turret_server.engine.messages import EngineRequest, Sampling
from turret_server.engine.settings import EngineSettings
from turret_server.engine.shard_messages import Step, Use, pack, unpack
from turret_server.errors import StartupError

SITE = Site(1, Module.Q)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    folder = tmp_path_factory.mktemp("model")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "component",
    [
        LowRank(SITE, torch.randn(2, 8).bfloat16(), torch.randn(2, 6).bfloat16(), num_experts=1),
        LowRank(SITE, torch.randn(8, 2).T, torch.randn(2, 6), published_scale=0.5),
        TernaryLowRank(SITE, *torch.ones(2, 3, 8).short(), torch.ones(3), 64, 60),
        Scale(SITE, torch.ones(6), torch.ones(6), distance=2, before_deltas=True),
        Scale(SITE, torch.ones(6)),
        Offset(SITE, torch.ones(6), absolute=True),
        Threshold(SITE, 0.25),
        SparseDelta(SITE, torch.zeros(7).long(), torch.empty(0).int(), torch.empty(0)),
    ],
    ids=lambda component: type(component).__name__,
)
def test_components_arrive_as_they_were(component):
    packed, frames = pack([component])
    (arrived,) = unpack(packed, [bytes(frame) for frame in frames])
    assert type(arrived) is type(component)
    assert arrived.site == component.site
    for name in component.__dataclass_fields__:
        was, now = getattr(component, name), getattr(arrived, name)
        if isinstance(was, torch.Tensor):
            assert now.dtype == was.dtype
            assert torch.equal(now, was)
        else:
            assert now == was


def test_uses_arrive_as_they_were():
    weights = (0.5, SiteWeights({"q_proj": (0.1, 0.2), "o_proj": 0.3}, 2))
    use = RowUse(3, 2, (0, 4), weights, virtual=1)
    arrived = Use.of(use).row_use(2)
    assert arrived == use
    assert torch.equal(arrived.weights[1].column, weights[1].column)


def test_the_table_of_a_step_is_as_wide_as_any_sequence_can_grow():
    follower = Follower.__new__(Follower)
    follower._settings = EngineSettings(
        model="", max_model_len=100, kv_block_tokens=16, max_running=3
    )
    follower._device = torch.device("cpu")
    follower._tables = follower._make_tables(num_blocks=50)
    first, count = np.array([4, 9], dtype=np.int64), np.array([20, 5], dtype=np.int32)
    table = np.array([[7, 8], [9, 0]], dtype=np.int32)
    arrays = {
        **dict.fromkeys(("token_ids", "positions", "slots"), first),
        "query_start": np.arange(3, dtype=np.int32),
        "context_len": count,
        "block_table": table,
    }
    batch = follower._batch(Step.of(arrays, None, []))
    assert batch.attention.block_table.shape == (2, 7)
    assert batch.attention.block_table[:, :2].tolist() == table.tolist()
    assert follower._make_tables(num_blocks=5).shape == (3, 5)


def test_heads_that_cannot_be_shared_out_are_refused(model):
    with pytest.raises(StartupError, match="it has 2 key and value heads"):
        Engine(EngineSettings(model=model, dtype="float32", tensor_parallel=4))


def test_shards_that_no_kernel_takes_are_refused_before_a_process_starts(model):
    settings = EngineSettings(model=model, quantization="int4", tensor_parallel=2)
    with pytest.raises(StartupError, match=r"what each of 2 processes has of .*o_proj"):
        Engine(settings)
    assert not followers_of(os.getpid())


def followers_of(pid: int) -> list[psutil.Process]:
    found = psutil.Process(pid).children()
    return [process for process in found if "turret_server.engine.follower" in process.cmdline()]


def request(number: int) -> EngineRequest:
    sampling = Sampling(temperature=0, max_tokens=4)
    return EngineRequest(id=str(number), prompt=[1, 2, 3], sampling=sampling)


async def test_when_a_follower_dies_the_engine_is_started_anew(model):
    settings = EngineSettings(
        model=model, dtype="float32", kv_cache_bytes=8 << 20, threads=2, tensor_parallel=2
    )
    link = EngineLink(settings)
    ready = await link.start()
    try:
        first = [token async for event in link.generate(request(0)) for token in event.tokens]
        (follower,) = followers_of(ready.pid)
        os.kill(follower.pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while link.ready is None or link.ready.pid == ready.pid:
                await asyncio.sleep(0.01)
        assert not psutil.pid_exists(ready.pid)
        again = [token async for event in link.generate(request(1)) for token in event.tokens]
        assert again == first
        (follower,) = followers_of(link.ready.pid)
    finally:
        await link.close()
    follower.wait(timeout=30)  # it ends with rank 0
