"""The places of a decoder where adapters may act. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Module(StrEnum):
    """Where in a decoder a site lies; the last part of its name.

    Linears first (their outputs, and what they multiply), then the activations between them.
    """

    Q = "q_proj"
    K = "k_proj"
    V = "v_proj"
    O = "o_proj"  # noqa: E741
    GATE = "gate_proj"
    UP = "up_proj"
    DOWN = "down_proj"
    EMBED = "embed_tokens"
    HEAD = "lm_head"
    ATTENTION_IN = "input_layernorm"  # what q, k and v read
    HEADS = "attention"  # the heads' outputs side by side: what o reads
    MLP_IN = "post_attention_layernorm"  # what gate and up read
    ACT = "act_fn"  # SiLU(gate), before it meets up
    INNER = "mlp_inner"  # what down reads
    HEAD_IN = "norm"  # what the head reads
    BLOCK = "block"  # what comes out of a layer, the residual stream


LINEARS = (Module.Q, Module.K, Module.V, Module.O, Module.GATE, Module.UP, Module.DOWN)
UNLAYERED = frozenset({Module.EMBED, Module.HEAD, Module.HEAD_IN})  # once in a model
# An activation is as wide as the input of the linear that reads it.
READERS = {
    Module.ATTENTION_IN: Module.Q,
    Module.HEADS: Module.O,
    Module.MLP_IN: Module.GATE,
    Module.ACT: Module.DOWN,
    Module.INNER: Module.DOWN,
    Module.HEAD_IN: Module.HEAD,
    Module.BLOCK: Module.Q,  # of the next layer, past its norm
}


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One place; `layer` is -1 for the embedding, the head and what the head reads."""

    layer: int
    module: Module

    def __str__(self) -> str:
        return self.module if self.layer < 0 else f"layers.{self.layer}.{self.module}"
