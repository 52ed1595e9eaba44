"""Rotary embedding as a configuration: transformers' old and new spelling of the same thing.

Up to transformers 4 a `config.json` has `rope_theta` and `rope_scaling` {type or rope_type, ...};
from 5 on it has `rope_parameters` {rope_type, rope_theta, ...}. Gemma 3 has two of them. Imports no
torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from turret_server.models.config_fields import Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Frequencies of the rotary embedding; see `rope.rope_table` for the formulas.

    Attributes:
        type: default, linear, dynamic, llama3 or yarn.
        theta: base of the wavelengths.
        factor: how much longer than pre-training the context is (1 for default).
        original_max_positions: context length of pre-training, in tokens.
        low_freq_factor: llama3: wavelengths above original / this are divided by `factor`.
        high_freq_factor: llama3: wavelengths below original / this are kept.
        beta_fast: yarn: dimensions that turn more often than this over the original context are
            kept.
        beta_slow: yarn: dimensions that turn less often are divided by `factor`.
        truncate: yarn: the two borders are rounded to whole dimensions.
        attention_factor: yarn: multiplies cosines and sines (1 for the others).
    """

    type: str
    theta: float
    factor: float = 1.0
    original_max_positions: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


def read_rope(fields: Fields, max_position_embeddings: int) -> RopeConfig:
    """Read either spelling from the fields of a `config.json`.

    Raises:
        StartupError: a type, field or value that is not implemented, or two contradicting ones.
    """
    theta = fields.number("rope_theta", 10000.0)
    fields.neutral("partial_rotary_factor", 1.0)
    # Phi's place for it; transformers lets it go before the one among the RoPE parameters.
    original = None
    if fields.take("original_max_position_embeddings") is not None:
        original = fields.count("original_max_position_embeddings")
    old, new = _either(fields)
    return _read_parameters(old or new, theta, max_position_embeddings, original)


def read_two_ropes(fields: Fields, max_position_embeddings: int) -> tuple[RopeConfig, RopeConfig]:
    """Gemma 3's two rotary embeddings: of layers that see everything, and of those with a window.

    Raises:
        StartupError: as `read_rope`.
    """
    theta = fields.number("rope_theta", 1_000_000.0)
    local_theta = fields.number("rope_local_base_freq", 10_000.0)
    old, new = _either(fields)
    everything, windowed = old, None  # the old spelling scales the first of them
    if new is not None:
        everything, windowed = new.nested("full_attention"), new.nested("sliding_attention")
        new.refuse_unread()
    return (
        _read_parameters(everything, theta, max_position_embeddings),
        _read_parameters(windowed, local_theta, max_position_embeddings),
    )


def _either(fields: Fields) -> tuple[Fields | None, Fields | None]:
    """The old and the new object; at most one is there."""
    old, new = fields.nested("rope_scaling"), fields.nested("rope_parameters")
    if old and new:
        fields.refuse("rope_scaling", "rope_parameters are given too, and say the same thing")
    return old, new


def _read_parameters(
    rope: Fields | None, theta: float, max_positions: int, outer_original: int | None = None
) -> RopeConfig:
    """One rotary embedding from the object that describes it, if there is one."""
    if rope is None:
        return RopeConfig(type="default", theta=theta, original_max_positions=max_positions)
    legacy = rope.take("type")
    kind = rope.take("rope_type", legacy or "default")
    if legacy not in (None, kind):
        rope.refuse("type", f"it contradicts rope_type = {kind!r}")
    theta = rope.number("rope_theta", theta)
    rope.neutral("partial_rotary_factor", 1.0)
    rope.take("finetuned")  # a note in old YaRN checkpoints
    if kind in ("llama3", "yarn"):
        original = rope.count("original_max_position_embeddings", max_positions)
        original = original if outer_original is None else outer_original
    else:
        original = max_positions
    if theta <= 1:
        rope.refuse("rope_theta", f"the base of the wavelengths must exceed 1, not {theta}")
    base = RopeConfig(type=kind, theta=theta, original_max_positions=original)
    match kind:
        case "default":
            config = base
        case "linear" | "dynamic":
            config = replace(base, factor=rope.number("factor"))
        case "llama3":
            config = replace(
                base,
                factor=rope.number("factor"),
                low_freq_factor=rope.number("low_freq_factor"),
                high_freq_factor=rope.number("high_freq_factor"),
            )
            if config.high_freq_factor <= config.low_freq_factor:
                rope.refuse("high_freq_factor", "it must exceed low_freq_factor")
        case "yarn":
            factor = rope.number("factor", max_positions / original)
            config = replace(
                base,
                factor=factor,
                beta_fast=rope.number("beta_fast", 32.0),
                beta_slow=rope.number("beta_slow", 1.0),
                truncate=rope.flag("truncate", True),
                attention_factor=_yarn_attention_factor(rope, factor),
            )
        case _:
            rope.refuse(
                "rope_type" if legacy is None else "type",
                "only default, linear, dynamic, llama3 and yarn are implemented",
            )
    rope.refuse_unread()
    return config


def _yarn_attention_factor(rope: Fields, factor: float) -> float:
    """0.1 ln(factor) + 1 (YaRN, section 3.4), or DeepSeek's quotient of two such terms."""
    given = rope.optional_number("attention_factor")
    mscale, all_dim = rope.optional_number("mscale"), rope.optional_number("mscale_all_dim")
    if given is not None:
        return given
    if factor <= 1:
        return 1.0
    if mscale is None or all_dim is None:
        return 0.1 * math.log(factor) + 1.0
    return (0.1 * mscale * math.log(factor) + 1.0) / (0.1 * all_dim * math.log(factor) + 1.0)
