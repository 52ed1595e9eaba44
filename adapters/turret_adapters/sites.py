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
    ATTENTION_IN = "attention_in"  # what q, k and v read
    HEADS = "attention"  # the heads' outputs side by side: what o reads
    ATTENTION_OUT = "attention_out"  # o's output behind its norm, where the model has one (Gemma)
    MLP_IN = "mlp_in"  # what gate and up read
    ACT = "act_fn"  # SiLU(gate) or GELU(gate), before it meets up
    INNER = "mlp_inner"  # what down reads
    MLP_OUT = "mlp_out"  # down's output behind its norm, where the model has one
    HEAD_IN = "norm"  # what the head reads
    BLOCK = "block"  # what comes out of a layer, the residual stream


LINEARS = (Module.Q, Module.K, Module.V, Module.O, Module.GATE, Module.UP, Module.DOWN)
# Behind norms that not every model has.
POST_NORMED = (Module.ATTENTION_OUT, Module.MLP_OUT)
# What comes out of a norm whose gain adapters may change, in the order of a layer.
NORMED = (Module.ATTENTION_IN, Module.ATTENTION_OUT, Module.MLP_IN, Module.MLP_OUT)
UNLAYERED = frozenset({Module.EMBED, Module.HEAD, Module.HEAD_IN})  # once in a model
# An activation is as wide as the input of the linear that reads it.
READERS = {
    Module.ATTENTION_IN: Module.Q,
    Module.HEADS: Module.O,
    Module.ATTENTION_OUT: Module.GATE,  # past the norm before it
    Module.MLP_IN: Module.GATE,
    Module.ACT: Module.DOWN,
    Module.INNER: Module.DOWN,
    Module.MLP_OUT: Module.Q,  # of the next layer, past its norm
    Module.HEAD_IN: Module.HEAD,
    Module.BLOCK: Module.Q,  # of the next layer, past its norm
}


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One place; `layer` is -1 for the embedding, the head and what the head reads."""

    layer: int
    module: Module

    def __str__(self) -> str:
        return self.module.value if self.layer < 0 else f"layers.{self.layer}.{self.module}"
