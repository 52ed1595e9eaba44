"""Tensor names of PEFT checkpoints: which site a tensor belongs to, and what it is there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from turret_adapters.spec import LINEARS, Module, Site

# Wrappers of training frameworks that leak into names.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# What may precede "layers", "embed_tokens" or "lm_head": a causal language model, its inner model,
# or the text part of a vision-language model. A vision tower is none of these.
_PREFIXES = {"model", "language_model"}
_BLOCKS = {
    Module.Q: "self_attn",
    Module.K: "self_attn",
    Module.V: "self_attn",
    Module.O: "self_attn",
    Module.GATE: "mlp",
    Module.UP: "mlp",
    Module.DOWN: "mlp",
}
_MODULES = {str(module): module for module in LINEARS}
# A layer's norms, by what comes out of them. Where blocks are normed behind as well as before,
# `post_attention_layernorm` is another norm.
_NORMS = {
    False: {
        "input_layernorm": Module.ATTENTION_IN,
        "post_attention_layernorm": Module.MLP_IN,
    },
    True: {
        "input_layernorm": Module.ATTENTION_IN,
        "post_attention_layernorm": Module.ATTENTION_OUT,
        "pre_feedforward_layernorm": Module.MLP_IN,
        "post_feedforward_layernorm": Module.MLP_OUT,
    },
}
_NORM_NAMES = {
    has_post_norms: {module: name for name, module in norms.items()}
    for has_post_norms, norms in _NORMS.items()
}


@dataclass(frozen=True, slots=True)
class TensorName:
    """A parsed name.

    Attributes:
        key: the name in the file.
        path: the module's path in the model that was trained, e.g.
            "model.layers.0.self_attn.q_proj": what PEFT's patterns are matched against.
        site: the module.
        role: the parts behind the module, e.g. ("lora_A", "weight").
    """

    key: str
    path: str
    site: Site
    role: tuple[str, ...]


# Every adapter of a base has the same names, some hundreds of them.
@lru_cache(maxsize=1 << 14)
def parse_name(key: str, has_post_norms: bool = False) -> TensorName | None:
    """The parts of a tensor's name, or None where it belongs to no site of a decoder.

    What a norm is called depends on the base (`ModelShape.has_post_norms`).

    The forms seen in the wild: `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`
    (PEFT), without `base_model.model.` (diffusers and converters), with one `model.` less (trained
    without the head), with `language_model.` (the text part of a vision-language model).
    """
    parts = [part for part in key.split(".") if part not in _WRAPPERS]
    if parts[:1] == ["module"]:  # DistributedDataParallel
        parts = parts[1:]
    if parts[:2] == ["base_model", "model"]:
        parts = parts[2:]
    start = next((i for i, part in enumerate(parts) if part not in _PREFIXES), len(parts))
    found = _site(parts[start : start + 4], has_post_norms)
    if found is None or start > 3:
        return None
    site, length = found
    end = start + length
    if end == len(parts):
        return None
    return TensorName(key, ".".join(parts[:end]), site, tuple(parts[end:]))


def module_path(site: Site, prefix: str = "model.", has_post_norms: bool = False) -> str:
    """The usual path of a site; `prefix` is what precedes "layers"."""
    if site.module is Module.HEAD:
        return "lm_head"
    if site.module in (Module.EMBED, Module.HEAD_IN):
        return f"{prefix}{site.module}"
    if site.module not in _BLOCKS:
        name = _NORM_NAMES[has_post_norms].get(site.module, site.module)
        return f"{prefix}layers.{site.layer}.{name}"
    return f"{prefix}layers.{site.layer}.{_BLOCKS[site.module]}.{site.module}"


def _site(parts: list[str], has_post_norms: bool) -> tuple[Site, int] | None:
    """The site that `parts` begin with, and how many parts name it."""
    if not parts:
        return None
    if parts[0] in (Module.EMBED, Module.HEAD, Module.HEAD_IN):
        return Site(-1, Module(parts[0])), 1
    if len(parts) < 4 or parts[0] != "layers":
        return None
    number = parts[1]
    # Canonical numbers only: "01" and "1" must not be two names of one layer.
    is_number = number.isascii() and number.isdigit() and len(number) < 6
    if not is_number or str(int(number)) != number:
        return None
    normed = _NORMS[has_post_norms].get(parts[2])
    if normed is not None:
        return Site(int(number), normed), 3
    module = _MODULES.get(parts[3])
    if module is None or _BLOCKS[module] != parts[2]:
        return None
    return Site(int(number), module), 4
