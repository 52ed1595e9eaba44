"""What a decoder computes, read from `config.json`; whatever would change it unseen is refused.

The allow-list has two halves: the fields read here, and those in `config_fields`. Everything else
is refused by name, for a field that nobody read may be the one that changes every logit. Defaults
are those of transformers' configuration classes. Imports no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from turret_server.errors import StartupError
from turret_server.models.config_fields import Fields
from turret_server.models.rope_config import RopeConfig, read_rope


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """How one architecture of transformers deviates from the others."""

    model_type: str
    default_kv_heads: int | None  # None: as many as there are heads
    default_head_dim: int | None = None  # None: hidden_size / heads
    qkv_bias: bool | None  # None: `attention_bias` decides, and decides for o_proj too
    mlp_bias: bool | None = False  # None: `mlp_bias` decides
    qk_norm: bool = False
    windows: Literal["no layer", "every layer", "some layers"]


_FAMILIES = {
    "LlamaForCausalLM": _Family(
        model_type="llama",
        default_kv_heads=None,
        qkv_bias=None,
        mlp_bias=None,
        windows="no layer",
    ),
    "MistralForCausalLM": _Family(
        model_type="mistral", default_kv_heads=8, qkv_bias=False, windows="every layer"
    ),
    "Qwen2ForCausalLM": _Family(
        model_type="qwen2", default_kv_heads=32, qkv_bias=True, windows="some layers"
    ),
    "Qwen3ForCausalLM": _Family(
        model_type="qwen3",
        default_kv_heads=32,
        default_head_dim=128,
        qkv_bias=None,
        qk_norm=True,
        windows="some layers",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """A Llama-family decoder: pre-norm, rotary, grouped queries, gated SiLU MLP.

    Attributes:
        architecture: transformers' class, such as "LlamaForCausalLM".
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
        qkv_bias: q_proj, k_proj and v_proj carry a bias.
        o_bias: o_proj carries a bias.
        mlp_bias: gate_proj, up_proj and down_proj carry a bias.
        qk_norm: every head of q and k is RMS-normalised before the rotation (Qwen3).
        tie_word_embeddings: the head is the embedding.
        windows: per layer, the sliding window in tokens, the query's own included; 0 = none.
    """

    architecture: str
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
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tie_word_embeddings: bool
    windows: tuple[int, ...]

    @property
    def max_context(self) -> int:
        """The longest sequence, in tokens, that the rotary frequencies were made for.

        Where the frequencies are stretched by a factor, `max_position_embeddings` may be the
        length before (vicuna-16k, Qwen2.5 with YaRN) or after stretching (deepseek-coder).
        """
        stretched = 0
        if self.rope.type == "linear":
            stretched = int(self.max_position_embeddings * self.rope.factor)
        elif self.rope.type == "yarn":
            stretched = int(self.rope.original_max_positions * self.rope.factor)
        return max(self.max_position_embeddings, stretched)

    @classmethod
    def from_folder(cls, folder: Path) -> DecoderConfig:
        """Read `folder/config.json`.

        Raises:
            StartupError: the file is missing or malformed, or names an architecture, a field or a
                value that is not implemented.
        """
        fields = Fields(str(folder), _read_json(folder))
        architecture = _architecture(fields)
        family = _FAMILIES[architecture]
        fields.refuse_foreign_code_and_quantization()

        num_heads = fields.count("num_attention_heads")
        num_kv_heads = fields.count("num_key_value_heads", family.default_kv_heads or num_heads)
        if num_heads % num_kv_heads:
            fields.refuse("num_key_value_heads", f"it must divide num_attention_heads, {num_heads}")
        hidden_size = fields.count("hidden_size")
        head_dim = fields.count("head_dim", family.default_head_dim or hidden_size // num_heads)
        if head_dim % 2:
            fields.refuse("head_dim", f"rotary embedding needs an even width, not {head_dim}")
        fields.neutral("hidden_act", "silu")
        num_layers = fields.count("num_hidden_layers")
        max_positions = fields.count("max_position_embeddings")
        qkv_bias, o_bias, mlp_bias = _biases(fields, family)
        config = cls(
            architecture=architecture,
            vocab_size=fields.count("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=fields.count("intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            max_position_embeddings=max_positions,
            rope=read_rope(fields, max_positions),
            qkv_bias=qkv_bias,
            o_bias=o_bias,
            mlp_bias=mlp_bias,
            qk_norm=family.qk_norm,
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            windows=_windows(fields, family, num_layers),
        )
        fields.refuse_unread()
        return config


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


def _windows(fields: Fields, family: _Family, num_layers: int) -> tuple[int, ...]:
    window, first = 0, 0
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
    slides = [window > 0 and layer >= first for layer in range(num_layers)]

    names = fields.take("layer_types")
    if names is not None:
        kinds = {"full_attention": False, "sliding_attention": True}
        if not isinstance(names, list) or not all(name in kinds for name in names):
            fields.refuse("layer_types", f"only {', '.join(kinds)} are implemented")
        listed = [kinds[name] for name in names]
        if len(listed) != num_layers:
            fields.refuse("layer_types", f"it must name each of the {num_layers} layers")
        if (any(listed) and not window) or (family.windows != "some layers" and listed != slides):
            fields.refuse("layer_types", "it contradicts the other sliding-window fields")
        slides = listed
    return tuple(window if slide else 0 for slide in slides)
