"""What a decoder computes, read from `config.json`; whatever would change it unseen is refused.

The allow-list has two halves: the fields read here, and those in `config_fields`. Everything else
is refused by name, for a field that nobody read may be the one that changes every logit. Defaults
are those of transformers' configuration classes. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from turret_server.errors import StartupError
from turret_server.models.config_fields import Fields
from turret_server.models.rope_config import RopeConfig, read_rope, read_two_ropes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """How one architecture of transformers deviates from the others."""

    model_type: str
    # Sizes that a file may leave out; without one here, there are as many KV heads as heads, and
    # they share hidden_size.
    defaults: Mapping[str, int] = field(default_factory=dict)
    qkv_bias: bool | None  # None: `attention_bias` decides, and decides for o_proj too
    mlp_bias: bool | None = False  # None: `mlp_bias` decides
    qk_norm: bool = False
    windows: Literal["no layer", "every layer", "some layers", "five of six"]
    is_gemma: bool = False
    has_vision: bool = False  # the language model is one part of it, and what is served


_GEMMA3 = _Family(
    model_type="gemma3_text",
    defaults={
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
    },
    qkv_bias=None,
    qk_norm=True,
    windows="five of six",
    is_gemma=True,
)

_FAMILIES = {
    "LlamaForCausalLM": _Family(
        model_type="llama",
        qkv_bias=None,
        mlp_bias=None,
        windows="no layer",
    ),
    "MistralForCausalLM": _Family(
        model_type="mistral",
        defaults={"num_key_value_heads": 8},
        qkv_bias=False,
        windows="every layer",
    ),
    "Qwen2ForCausalLM": _Family(
        model_type="qwen2",
        defaults={"num_key_value_heads": 32},
        qkv_bias=True,
        windows="some layers",
    ),
    "Qwen3ForCausalLM": _Family(
        model_type="qwen3",
        defaults={"num_key_value_heads": 32, "head_dim": 128},
        qkv_bias=None,
        qk_norm=True,
        windows="some layers",
    ),
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": replace(_GEMMA3, model_type="gemma3", has_vision=True),
}

# Those that transformers also makes classifiers of: the class that classifies -> the decoder.
CLASSIFYING_DECODERS = {
    f"{family}ForSequenceClassification": f"{family}ForCausalLM"
    for family in ("Llama", "Mistral", "Qwen2", "Qwen3")
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """A decoder of the Llama family: pre-norm, rotary, grouped queries, gated MLP.

    Attributes:
        architecture: transformers' class, such as "LlamaForCausalLM".
        has_vision: the checkpoint holds a vision tower, too, which is left out.
        vocab_size: rows of the embedding and of the head.
        hidden_size: width of the residual stream.
        intermediate_size: width of the gated MLP.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key and value heads; divides `num_heads`.
        head_dim: width of a head; need not be hidden_size / num_heads.
        rms_norm_eps: added to the mean square of every norm.
        max_position_embeddings: the context length, in tokens, that the checkpoint states.
        rope: rotary embedding.
        local_rope: of layers with a window (Gemma; elsewhere the same).
        attention_scale: multiplies the scores.
        qkv_bias: q_proj, k_proj and v_proj carry a bias.
        o_bias: o_proj carries a bias.
        mlp_bias: gate_proj, up_proj and down_proj carry a bias.
        qk_norm: every head of q and k is RMS-normalised before the rotation (Qwen3, Gemma).
        post_norms: the outputs of attention and MLP are normalised before they are added (Gemma).
        norm_offset: what every norm adds to its weight (1 in Gemma).
        embed_scale: multiplies the embedded tokens, rounded to the served dtype (Gemma).
        activation: of the MLP's gate.
        tie_word_embeddings: the head is the embedding.
        windows: per layer, the sliding window in tokens, the query's own included; 0 = none.
    """

    architecture: str
    has_vision: bool
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    local_rope: RopeConfig
    attention_scale: float
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    post_norms: bool
    norm_offset: float
    embed_scale: float
    activation: Literal["silu", "gelu_tanh"]
    tie_word_embeddings: bool
    windows: tuple[int, ...]

    @property
    def max_context(self) -> int:
        """The longest sequence, in tokens, that the rotary frequencies were made for.

        Where the frequencies are stretched by a factor, `max_position_embeddings` may be the
        length before (vicuna-16k, Qwen2.5 with YaRN) or after stretching (deepseek-coder).
        """
        if self.local_rope != self.rope:  # Gemma states it after stretching
            return self.max_position_embeddings
        stretched = 0
        if self.rope.type == "linear":
            stretched = int(self.max_position_embeddings * self.rope.factor)
        elif self.rope.type == "yarn":
            stretched = int(self.rope.original_max_positions * self.rope.factor)
        return max(self.max_position_embeddings, stretched)

    def split(self, world: int) -> DecoderConfig:
        """The sizes of one of `world` equal shards: its heads and its neurons.

        Raises:
            StartupError: they cannot be shared out equally.
        """
        sizes = {
            "num_kv_heads": ("key and value heads", self.num_kv_heads),
            "num_heads": ("query heads", self.num_heads),
            "intermediate_size": ("neurons in its MLPs", self.intermediate_size),
        }
        for what, size in sizes.values():
            if size % world:
                raise StartupError(
                    f"the model cannot be split over {world} processes",
                    f"it has {size} {what}, and each process holds equally many",
                    "Set --tensor-parallel to a number that divides them.",
                )
        return replace(self, **{name: size // world for name, (_, size) in sizes.items()})

    @classmethod
    def from_folder(cls, folder: Path) -> DecoderConfig:
        """Read `folder/config.json`.

        Raises:
            StartupError: the file is missing or malformed, or names an architecture, a field or a
                value that is not implemented.
        """
        fields = open_config(folder)
        return cls.from_fields(fields, _architecture(fields))

    @classmethod
    def from_fields(cls, fields: Fields, architecture: str) -> DecoderConfig:
        """Read the configuration of a decoder, all fields of it.

        Raises:
            StartupError: as `from_folder`.
        """
        family = _FAMILIES[architecture]
        fields.neutral("model_type", family.model_type)
        fields.refuse_foreign_code_and_quantization()
        is_tied = fields.flag("tie_word_embeddings", family.is_gemma)
        if family.has_vision:
            fields = _text_part(fields, is_tied)

        def count(name: str, default: int | None = None) -> int:
            default = family.defaults.get(name, default)
            return fields.count(name) if default is None else fields.count(name, default)

        num_heads = count("num_attention_heads")
        num_kv_heads = count("num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            fields.refuse("num_key_value_heads", f"it must divide num_attention_heads, {num_heads}")
        hidden_size = count("hidden_size")
        head_dim = count("head_dim", hidden_size // num_heads)
        if head_dim % 2:
            fields.refuse("head_dim", f"rotary embedding needs an even width, not {head_dim}")
        num_layers = count("num_hidden_layers")
        max_positions = count("max_position_embeddings")
        qkv_bias, o_bias, mlp_bias = _biases(fields, family)
        if family.is_gemma:
            _refuse_what_gemma_could_be(fields)
            rope, local_rope = read_two_ropes(fields, max_positions)
            attention_scale = fields.number("query_pre_attn_scalar", 256) ** -0.5
        else:
            fields.neutral("hidden_act", "silu")
            rope = local_rope = read_rope(fields, max_positions)
            attention_scale = head_dim**-0.5
        config = cls(
            architecture=architecture,
            has_vision=family.has_vision,
            vocab_size=count("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=count("intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            max_position_embeddings=max_positions,
            rope=rope,
            local_rope=local_rope,
            attention_scale=attention_scale,
            qkv_bias=qkv_bias,
            o_bias=o_bias,
            mlp_bias=mlp_bias,
            qk_norm=family.qk_norm,
            post_norms=family.is_gemma,
            norm_offset=1.0 if family.is_gemma else 0.0,
            embed_scale=hidden_size**0.5 if family.is_gemma else 1.0,
            activation="gelu_tanh" if family.is_gemma else "silu",
            tie_word_embeddings=is_tied,
            windows=_windows(fields, family, num_layers),
        )
        fields.refuse_unread()
        return config


def open_config(folder: Path) -> Fields:
    """The fields of `folder/config.json`, none of them read.

    Raises:
        StartupError: the file is missing or malformed.
    """
    return Fields(str(folder), _read_json(folder))


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StartupError(
            f"model {str(folder)!r} cannot be served",
            f"its config.json cannot be read ({error})",
            "Save it again with transformers: model.save_pretrained(folder).",
        ) from error
    if not isinstance(raw, dict):
        raise StartupError(
            f"model {str(folder)!r} cannot be served",
            "its config.json is not a JSON object",
            "Save it again with transformers: model.save_pretrained(folder).",
        )
    return raw


def _architecture(fields: Fields) -> str:
    named = fields.take("architectures")
    model_type = fields.take("model_type")
    if named is None:  # a bare config, as config.save_pretrained() writes it
        named = [name for name, family in _FAMILIES.items() if family.model_type == model_type]
    served = ", ".join(_FAMILIES)
    if not isinstance(named, list) or len(named) != 1 or named[0] not in _FAMILIES:
        fields.refuse("architectures", "no such decoder is implemented", f"Serve one of: {served}.")
    if model_type not in (None, _FAMILIES[named[0]].model_type):
        fields.refuse("model_type", f"it contradicts architectures = {named!r}")
    return named[0]


def _text_part(fields: Fields, is_tied: bool) -> Fields:
    """The language model's fields in the configuration of a model that also sees."""
    for name in (
        "vision_config",
        "mm_tokens_per_image",
        "boi_token_index",
        "eoi_token_index",
        "image_token_index",
    ):
        fields.take(name)
    text = fields.nested("text_config")
    if text is None:
        fields.refuse("text_config", "the language model's sizes are there")
    fields.refuse_unread()
    text.neutral("model_type", "gemma3_text")
    text.neutral("architectures", ["Gemma3ForCausalLM"])
    text.neutral("tie_word_embeddings", is_tied)
    text.refuse_foreign_code_and_quantization()
    return text


def _biases(fields: Fields, family: _Family) -> tuple[bool, bool, bool]:
    """Whether q, k and v; o; gate, up and down carry biases."""
    if family.qkv_bias is None:
        qkv = o = fields.flag("attention_bias", False)
    else:
        qkv, o = family.qkv_bias, False
        fields.neutral("attention_bias", qkv)
    if family.mlp_bias is None:
        return qkv, o, fields.flag("mlp_bias", False)
    fields.neutral("mlp_bias", family.mlp_bias)
    return qkv, o, family.mlp_bias


def _refuse_what_gemma_could_be(fields: Fields) -> None:
    """Options of Gemma's configuration that no published Gemma 3 uses."""
    fields.neutral("hidden_activation", "gelu_pytorch_tanh")
    fields.neutral("attn_logit_softcapping")
    fields.neutral("final_logit_softcapping")
    fields.neutral("use_bidirectional_attention", False)


def _windows(fields: Fields, family: _Family, num_layers: int) -> tuple[int, ...]:
    window, first, pattern = 0, 0, 0
    match family.windows:
        case "no layer":
            fields.neutral("sliding_window")
            fields.neutral("use_sliding_window", False)
        case "every layer":
            window = fields.optional_count("sliding_window", 4096)
        case "some layers":
            window = fields.optional_count("sliding_window", 4096)
            if not fields.flag("use_sliding_window", False):
                window = 0
            first = fields.take("max_window_layers", 28)
            if not isinstance(first, int):
                fields.refuse("max_window_layers", "it must be a number of layers")
        case "five of six":
            window = fields.count("sliding_window", 4096)
            pattern = fields.count("sliding_window_pattern", 6)
            if fields.take("layer_types") is None:
                fields.neutral("_sliding_window_pattern", pattern)
            fields.take("_sliding_window_pattern")  # a note of transformers 4.5x
    slides = [
        window > 0 and layer >= first and not (pattern and (layer + 1) % pattern == 0)
        for layer in range(num_layers)
    ]

    names = fields.take("layer_types")
    if names is not None:
        kinds = {"full_attention": False, "sliding_attention": True}
        if not isinstance(names, list) or not all(name in kinds for name in names):
            fields.refuse("layer_types", f"only {', '.join(kinds)} are implemented")
        listed = [kinds[name] for name in names]
        if len(listed) != num_layers:
            fields.refuse("layer_types", f"it must name each of the {num_layers} layers")
        is_free = family.windows in ("some layers", "five of six")
        if (any(listed) and not window) or (listed != slides and not is_free):
            fields.refuse("layer_types", "it contradicts the other sliding-window fields")
        slides = listed
    return tuple(window if slide else 0 for slide in slides)
