"""What the engine asks of a decoder beside logits."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config

from turret_adapters.spec import Module, Site
from turret_kernels.paged_attention import AttentionMetadata
from turret_server.errors import StartupError
from turret_server.models.batch import Batch
from turret_server.models.decoder import Decoder

CPU = torch.device("cpu")


def _prefill(tokens: int, logit_rows: list[int]) -> Batch:
    """The first `tokens` of one sequence in block 0."""
    rows = torch.arange(tokens)
    return Batch(
        token_ids=rows,
        positions=rows,
        slots=rows,
        attention=AttentionMetadata(
            query_start=torch.tensor([0, tokens], dtype=torch.int32),
            context_len=torch.tensor([tokens], dtype=torch.int32),
            block_table=torch.zeros(1, 1, dtype=torch.int32),
        ),
        logit_rows=torch.tensor(logit_rows, dtype=torch.int64),
    )


def test_only_the_rows_asked_for_get_logits(save_tiny):
    folder, _ = save_tiny(LlamaConfig)
    decoder = Decoder.load(folder, torch.float32, CPU, max_model_len=16)
    every = decoder.forward(_prefill(8, list(range(8))), decoder.allocate_kv(1, 8))
    some = decoder.forward(_prefill(8, [2, 7]), decoder.allocate_kv(1, 8))
    assert every.shape == (8, 128)
    torch.testing.assert_close(some, every[[2, 7]], atol=1e-5, rtol=0)


def test_a_step_without_logits_still_fills_the_cache(save_tiny):
    folder, _ = save_tiny(LlamaConfig)
    decoder = Decoder.load(folder, torch.float32, CPU, max_model_len=16)
    silent, loud = decoder.allocate_kv(1, 8), decoder.allocate_kv(1, 8)
    assert decoder.forward(_prefill(8, []), silent).shape == (0, 128)
    decoder.forward(_prefill(8, [0]), loud)
    for a, b in zip(silent, loud, strict=True):
        assert torch.equal(a.k, b.k)
        assert torch.equal(a.v, b.v)


def test_logits_are_float32_whatever_is_served(save_tiny):
    folder, _ = save_tiny(LlamaConfig)
    decoder = Decoder.load(folder, torch.bfloat16, CPU, max_model_len=16)
    kv = decoder.allocate_kv(1, 8)
    assert kv[0].k.dtype == torch.bfloat16
    assert decoder.forward(_prefill(8, [7]), kv).dtype == torch.float32


def test_cache_size(save_tiny):
    folder, _ = save_tiny(LlamaConfig, head_dim=24)
    decoder = Decoder.load(folder, torch.bfloat16, CPU, max_model_len=16)
    kv = decoder.allocate_kv(num_blocks=3, block_tokens=8)
    assert [cache.k.shape for cache in kv] == [(3, 2, 8, 24)] * 2
    assert sum(cache.k.nbytes + cache.v.nbytes for cache in kv) == (
        3 * 8 * decoder.kv_bytes_per_token
    )


def test_shape_names_every_site(save_tiny):
    folder, _ = save_tiny(LlamaConfig, head_dim=24, tie_word_embeddings=True)
    shape = Decoder.load(folder, torch.float32, CPU, max_model_len=16).shape
    assert shape.num_layers == 2
    assert shape.tied_head
    assert shape.name == str(folder)
    assert shape.has_bias == frozenset()
    assert dict(shape.dims) == {
        Module.Q: (64, 96),
        Module.K: (64, 48),
        Module.V: (64, 48),
        Module.O: (96, 64),
        Module.GATE: (64, 96),
        Module.UP: (64, 96),
        Module.DOWN: (96, 64),
        Module.EMBED: (128, 64),
        Module.HEAD: (64, 128),
    }


def test_biases_of_qwen2(save_tiny):
    folder, model = save_tiny(Qwen2Config)
    decoder = Decoder.load(folder, torch.float32, CPU, max_model_len=16)
    assert decoder.shape.has_bias == {Module.Q, Module.K, Module.V}
    for module in decoder.shape.has_bias:
        expected = getattr(model.model.layers[1].self_attn, module).bias
        assert torch.equal(decoder.bias(Site(1, module)), expected)
    for site in (
        Site(0, Module.O),
        Site(1, Module.UP),
        Site(1, Module.DOWN),
        Site(-1, Module.HEAD),
    ):
        assert decoder.bias(site) is None


def test_biases_of_llama(save_tiny):
    folder, model = save_tiny(LlamaConfig, attention_bias=True, mlp_bias=True)
    decoder = Decoder.load(folder, torch.float32, CPU, max_model_len=16)
    layer = model.model.layers[0]
    for module in decoder.shape.has_bias:
        part = layer.mlp if hasattr(layer.mlp, module) else layer.self_attn
        assert torch.equal(decoder.bias(Site(0, module)), getattr(part, module).bias)
    assert len(decoder.shape.has_bias) == 7


def test_a_context_beyond_the_model_is_refused(save_tiny):
    folder, _ = save_tiny(LlamaConfig)
    with pytest.raises(StartupError, match=r"65 tokens.*made for 64.*--max-model-len"):
        Decoder.load(folder, torch.float32, CPU, max_model_len=65)
