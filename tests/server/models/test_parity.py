"""Every architecture and RoPE scaling gives the logits of transformers.

Each case runs as a ragged mixed batch (see conftest) and is compared at every position.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
)

from turret_server.models.decoder import Decoder

TINY = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LENGTHS = (23, 1, 40, 9, 6)

# Layers with a window and without, their own two RoPEs, and a scale that is not head_dim ** -0.5.
GEMMA: dict[str, Any] = {
    "head_dim": 32,
    "query_pre_attn_scalar": 24,
    "sliding_window": 7,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
STRETCHED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}

ARCHITECTURES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "llama, grouped queries": (LlamaConfig, {}),
    "llama, one head per query": (LlamaConfig, {"num_key_value_heads": 4}),
    "llama, one head for all": (LlamaConfig, {"num_key_value_heads": 1}),
    "llama, tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "llama, biases": (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": (LlamaConfig, {"head_dim": 24}),
    "llama, coarse norm": (LlamaConfig, {"rms_norm_eps": 0.1, "rope_theta": 500000.0}),
    "mistral": (MistralConfig, {"sliding_window": None}),
    "mistral, window": (MistralConfig, {"sliding_window": 7, "head_dim": 32}),
    "mistral, window of one": (MistralConfig, {"sliding_window": 1}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2, window from layer 1": (
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen2, layer types": (
        Qwen2Config,
        {
            "use_sliding_window": True,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "qwen3": (Qwen3Config, {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3, biases": (Qwen3Config, {"head_dim": 16, "attention_bias": True}),
    "gemma3": (Gemma3TextConfig, GEMMA),
    "gemma3, wide heads and biases": (
        Gemma3TextConfig,
        GEMMA | {"head_dim": 40, "attention_bias": True, "sliding_window": 1},
    ),
    "gemma3, stretched": (Gemma3TextConfig, GEMMA | {"rope_parameters": STRETCHED}),
    "gemma3, untied": (Gemma3TextConfig, GEMMA | {"tie_word_embeddings": False}),
}

ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 50.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 50.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 2.0,
    },
    "yarn, mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "mscale": 0.7,
        "mscale_all_dim": 0.3,
        "truncate": False,
    },
    "yarn, attention factor": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.8},
}


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_architecture(case, save_tiny, ragged_logits):
    config_class, options = ARCHITECTURES[case]
    _assert_parity(*save_tiny(config_class, **options), ragged_logits)


@pytest.mark.parametrize("case", ROPES)
def test_rope_scaling(case, save_tiny, ragged_logits):
    _assert_parity(*save_tiny(LlamaConfig, rope_parameters=ROPES[case]), ragged_logits)


def test_the_text_part_of_a_model_that_also_sees(tmp_path, ragged_logits):
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    text = Gemma3TextConfig(**(TINY | GEMMA))
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=127
    )
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    model.save_pretrained(tmp_path)
    sequences = [[token % 127 for token in sequence] for sequence in _sequences()]  # no image
    decoder = Decoder.load(tmp_path, torch.float32, torch.device("cpu"), max_model_len=64)
    results = ragged_logits(decoder, sequences)
    for logits, expected in zip(results, _reference(model, sequences), strict=True):
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_sharded_weights(save_tiny, ragged_logits):
    folder, model = save_tiny(LlamaConfig, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    _assert_parity(folder, model, ragged_logits)


@pytest.mark.parametrize(
    ("config_class", "options"),
    [
        (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
        (MistralConfig, {"sliding_window": 7}),
        (Qwen2Config, {}),
        (Qwen3Config, {}),
        (Gemma3TextConfig, GEMMA),
    ],
    ids=["llama", "mistral", "qwen2", "qwen3", "gemma3"],
)
def test_bfloat16_errs_no_more_than_transformers(config_class, options, save_tiny, ragged_logits):
    """Heads of 32 and blocks of 32 take the native kernels where the processor has them."""
    folder, _ = save_tiny(config_class, **{"head_dim": 32} | options)
    decoder = Decoder.load(folder, torch.bfloat16, torch.device("cpu"), max_model_len=64)
    sequences = _sequences()
    ours = torch.cat(ragged_logits(decoder, sequences, block_tokens=32))
    rounded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    # The same rounded weights on both sides: what differs is the arithmetic.
    exact = torch.cat(_reference(copy.deepcopy(rounded).float(), sequences))
    theirs = torch.cat(_reference(rounded, sequences))
    assert (ours - exact).abs().mean() < 1.1 * (theirs - exact).abs().mean()


def _assert_parity(folder, model, ragged_logits):
    decoder = Decoder.load(folder, torch.float32, torch.device("cpu"), max_model_len=64)
    sequences = _sequences()
    results = ragged_logits(decoder, sequences)
    for logits, expected in zip(results, _reference(model, sequences), strict=True):
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def _sequences():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(128, (n,), generator=generator).tolist() for n in LENGTHS]


def _reference(model, sequences):
    with torch.inference_mode():
        return [model(torch.tensor([sequence])).logits[0] for sequence in sequences]
