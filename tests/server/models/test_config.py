"""config.json: what is read, and what is refused by name."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from turret_server.errors import StartupError
from turret_server.models.config import DecoderConfig

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN2 = LLAMA | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_key_value_heads": 2,
}
QWEN3 = QWEN2 | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
# As Google wrote the one of gemma-3-4b-it: what is missing are transformers' defaults.
GEMMA: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 7,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}
WINDOWED = QWEN2 | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}


@pytest.fixture
def read(tmp_path):
    def read(raw: dict[str, Any]) -> DecoderConfig:
        (tmp_path / "config.json").write_text(json.dumps(raw))
        return DecoderConfig.from_folder(tmp_path)

    return read


def test_missing_fields_have_the_defaults_of_transformers(read):
    config = read(LLAMA)
    assert (config.num_kv_heads, config.head_dim, config.rms_norm_eps) == (4, 16, 1e-6)
    assert (config.rope.type, config.rope.theta) == ("default", 10000.0)
    assert not config.tie_word_embeddings
    assert config.windows == (0, 0, 0)
    assert read(MISTRAL | {"num_attention_heads": 8}).num_kv_heads == 8
    assert read(MISTRAL | {"num_attention_heads": 8}).windows == (4096, 4096, 4096)
    assert read(QWEN3).head_dim == 128


def test_biases(read):
    def biases(raw):
        config = read(raw)
        return config.qkv_bias, config.o_bias, config.mlp_bias

    assert biases(LLAMA) == (False, False, False)
    assert biases(LLAMA | {"attention_bias": True}) == (True, True, False)
    assert biases(LLAMA | {"mlp_bias": True}) == (False, False, True)
    assert biases(QWEN2) == (True, False, False)
    assert biases(QWEN3 | {"attention_bias": True}) == (True, True, False)


def test_windows(read):
    assert read(WINDOWED).windows == (0, 0, 8)
    assert read(WINDOWED | {"use_sliding_window": False}).windows == (0, 0, 0)
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    assert read(WINDOWED | {"layer_types": types}).windows == (8, 0, 8)
    no_window = MISTRAL | {"num_key_value_heads": 2, "sliding_window": None}
    assert read(no_window).windows == (0, 0, 0)
    assert read(LLAMA | {"layer_types": ["full_attention"] * 3}).windows == (0, 0, 0)


def test_the_old_and_the_new_spelling_of_rope_agree(read):
    old = read(LLAMA | {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}})
    new = read(
        LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}
    )
    assert old.rope == new.rope
    assert (old.rope.type, old.rope.factor, old.rope.theta) == ("linear", 2.0, 5e5)


def test_gemma_is_not_a_llama(read):
    config = read(GEMMA)
    assert (config.vocab_size, config.num_heads, config.num_kv_heads) == (262_208, 8, 4)
    assert (config.head_dim, config.attention_scale) == (256, 1 / 16)
    assert (config.norm_offset, config.embed_scale) == (1.0, 2560**0.5)
    assert config.post_norms
    assert config.qk_norm
    assert config.activation == "gelu_tanh"
    assert config.tie_word_embeddings
    assert config.max_context == 131_072  # what it states is the length after stretching
    assert read(GEMMA | {"query_pre_attn_scalar": 64}).attention_scale == 1 / 8


def test_every_sixth_layer_of_gemma_sees_everything(read):
    assert read(GEMMA).windows == (1024,) * 5 + (0, 1024)
    assert read(GEMMA | {"sliding_window_pattern": 3}).windows[:4] == (1024, 1024, 0, 1024)
    types = ["full_attention"] + ["sliding_attention"] * 6
    noted = {"layer_types": types, "_sliding_window_pattern": 3}
    assert read(GEMMA | noted).windows == (0,) + (1024,) * 6


def test_a_model_that_also_sees_is_served_as_its_text_part(read):
    text = {name: GEMMA[name] for name in GEMMA if name != "architectures"}
    seeing = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "image_token_index": 262144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "text_config": text,
        "vision_config": {"model_type": "siglip_vision_model"},
    }
    found = asdict(read(seeing))
    differing = {"architecture": "Gemma3ForConditionalGeneration", "has_vision": True}
    assert found == asdict(read(GEMMA)) | differing
    assert not read(seeing | {"tie_word_embeddings": False}).tie_word_embeddings
    with pytest.raises(StartupError, match=r"text_config\.logit_scale"):
        read(seeing | {"text_config": text | {"logit_scale": 2.0}})
    with pytest.raises(StartupError, match="text_config is missing"):
        read({name: value for name, value in seeing.items() if name != "text_config"})


def test_gemma_has_two_ropes_in_either_spelling(read):
    old = read(GEMMA | {"rope_theta": 2e6, "rope_local_base_freq": 3e4})
    both = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
    }
    new = read(GEMMA | {"rope_scaling": None, "rope_parameters": both})
    assert (old.rope, old.local_rope) == (new.rope, new.local_rope)
    assert (old.rope.type, old.rope.factor, old.rope.theta) == ("linear", 8.0, 2e6)
    assert (old.local_rope.type, old.local_rope.theta) == ("default", 3e4)
    assert (read(GEMMA).rope.theta, read(GEMMA).local_rope.theta) == (1e6, 1e4)


def test_original_context_of_yarn(read):
    def original(extra, **yarn):
        raw = LLAMA | extra | {"rope_scaling": {"type": "yarn", "factor": 4.0} | yarn}
        return read(raw).rope.original_max_positions

    assert original({}) == 64
    assert original({}, original_max_position_embeddings=16) == 16
    outer = {"original_max_position_embeddings": 32}  # goes first, as in transformers
    assert original(outer, original_max_position_embeddings=16) == 32


@pytest.mark.parametrize(
    ("rope", "tokens"),
    [
        ({"rope_type": "default"}, 64),
        ({"rope_type": "dynamic", "factor": 4.0}, 64),
        ({"rope_type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, 64),
    ],
    ids=str,
)
def test_max_context(read, rope, tokens):
    assert read(LLAMA | {"rope_parameters": rope}).max_context == tokens


def test_bookkeeping_is_accepted(read):
    harmless = {
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.0",
        "eos_token_id": [2, 3],
        "use_cache": True,
        "attention_dropout": 0.0,
        "pretraining_tp": 1,
        "rope_interleaved": False,
        "is_llama_config": True,
        "quantization_config": None,
        "rope_scaling": None,
    }
    assert read(LLAMA | harmless) == read(LLAMA)


# Fields of well-known checkpoints, beside those of LLAMA: none of them may be refused.
PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": LLAMA
    | {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "initializer_range": 0.02,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.0",
    },
    "SmolLM2-135M": LLAMA
    | {
        "is_llama_config": True,
        "rope_interleaved": False,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    },
    "Mistral-7B-v0.1": MISTRAL | {"num_key_value_heads": 2, "sliding_window": 4096},
    "Qwen2.5-0.5B": QWEN2
    | {
        "max_window_layers": 24,
        "sliding_window": 32768,
        "use_mrope": False,
        "use_sliding_window": False,
    },
    "Qwen3-0.6B": QWEN3
    | {
        "attention_bias": False,
        "head_dim": 128,
        "max_window_layers": 28,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "use_sliding_window": False,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_accepted(read, name):
    assert read(PUBLISHED[name]).num_layers == PUBLISHED[name]["num_hidden_layers"]


for name in ("gemma-3-270m", "gemma-3-1b-it"):
    PUBLISHED[name] = GEMMA | {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "bos_token_id": 2,
        "eos_token_id": [1, 106],
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 512,
        "vocab_size": 262144,
    }
PUBLISHED["gemma-3-270m"] |= {
    "_sliding_window_pattern": 6,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
    "use_bidirectional_attention": False,
}
PUBLISHED["gemma-3-1b-it"] |= {"cache_implementation": "hybrid", "sliding_window_pattern": 6}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": (LLAMA | {"architectures": ["GPT2LMHeadModel"]}, "architectures"),
    "two architectures": (LLAMA | {"architectures": ["LlamaForCausalLM"] * 2}, "architectures"),
    "no architecture": (LLAMA | {"architectures": None, "model_type": "gpt2"}, "architectures"),
    "model type": (LLAMA | {"model_type": "mistral"}, "model_type"),
    "quantization": (
        LLAMA | {"quantization_config": {"quant_method": "awq"}},
        "quantization_config",
    ),
    "foreign code": (LLAMA | {"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
    "unknown field": (LLAMA | {"logit_scale": 2.0}, "logit_scale"),
    "unknown field of null": (LLAMA | {"logit_softcapping": None}, "logit_softcapping"),
    "per-layer config": (LLAMA | {"per_layer_config": {"0": {}}}, "per_layer_config"),
    "interleaved rope": (LLAMA | {"rope_interleaved": True}, "rope_interleaved"),
    "activation": (LLAMA | {"hidden_act": "gelu"}, "hidden_act"),
    "no size": ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, "hidden_size"),
    "size as text": (LLAMA | {"vocab_size": "100"}, "vocab_size"),
    "size of zero": (LLAMA | {"num_hidden_layers": 0}, "num_hidden_layers"),
    "uneven groups": (LLAMA | {"num_key_value_heads": 3}, "num_key_value_heads"),
    "odd head": (LLAMA | {"head_dim": 15}, "head_dim"),
    "negative eps": (LLAMA | {"rms_norm_eps": -1e-6}, "rms_norm_eps"),
    "flag as text": (LLAMA | {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    "mistral biases": (
        MISTRAL | {"num_key_value_heads": 2, "attention_bias": True},
        "attention_bias",
    ),
    "qwen2 without biases": (QWEN2 | {"attention_bias": False}, "attention_bias"),
    "qwen3 MLP bias": (QWEN3 | {"mlp_bias": True}, "mlp_bias"),
    "llama window": (LLAMA | {"sliding_window": 8}, "sliding_window"),
    "window of zero": (MISTRAL | {"num_key_value_heads": 2, "sliding_window": 0}, "sliding_window"),
    "unknown layer type": (WINDOWED | {"layer_types": ["linear_attention"] * 3}, "layer_types"),
    "too few layer types": (WINDOWED | {"layer_types": ["full_attention"]}, "layer_types"),
    "sliding layer, no window": (
        QWEN2 | {"layer_types": ["sliding_attention"] * 3},
        "layer_types",
    ),
    "mistral layer types": (
        MISTRAL | {"num_key_value_heads": 2, "layer_types": ["full_attention"] * 3},
        "layer_types",
    ),
    "longrope": (
        LLAMA | {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
        "rope_scaling.rope_type",
    ),
    "mrope": (LLAMA | {"rope_scaling": {"type": "mrope"}}, "rope_scaling.type"),
    "rope per layer type": (
        LLAMA | {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
        "rope_parameters.full_attention",
    ),
    "two rope types": (
        LLAMA | {"rope_scaling": {"type": "yarn", "rope_type": "linear", "factor": 2.0}},
        "rope_scaling.type",
    ),
    "both spellings": (
        LLAMA | {"rope_scaling": {"type": "linear"}, "rope_parameters": {"rope_type": "linear"}},
        "rope_scaling",
    ),
    "partial rotation": (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "linear without factor": (LLAMA | {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
    "unknown rope field": (
        LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}},
        "rope_scaling.beta",
    ),
    "gemma's other activation": (
        GEMMA | {"hidden_activation": "gelu"},
        "hidden_activation",
    ),
    "capped scores": (GEMMA | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    "capped logits": (GEMMA | {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    "both directions": (
        GEMMA | {"use_bidirectional_attention": True},
        "use_bidirectional_attention",
    ),
    "window of none": (GEMMA | {"sliding_window": 0}, "sliding_window"),
    "a third rope": (
        GEMMA | {"rope_scaling": None, "rope_parameters": {"rope_theta": 1e4}},
        "rope_parameters.rope_theta",
    ),
    "theta of one": (
        LLAMA | {"rope_parameters": {"rope_theta": 1.0}},
        "rope_parameters.rope_theta",
    ),
    "llama3 without a ramp": (
        LLAMA
        | {
            "rope_scaling": {
                "type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 4.0,
                "high_freq_factor": 4.0,
            }
        },
        "rope_scaling.high_freq_factor",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(read, case):
    raw, name = REFUSED[case]
    with pytest.raises(StartupError) as refusal:
        read(raw)
    assert refusal.value.why.startswith(f"config.json: {name} ")
    assert refusal.value.fix


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_unreadable_file_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(StartupError, match=r"config\.json"):
        DecoderConfig.from_folder(tmp_path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(StartupError, match=r"config\.json"):
        DecoderConfig.from_folder(tmp_path)
