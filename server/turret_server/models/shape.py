"""What the base is to adapters: its sizes, and its weights where a format depends on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from turret_adapters.spec import LINEARS, ModelShape, Module, Site
from turret_kernels.linear import quantize_linear, unpack_linear
from turret_kernels.quantized import Method
from turret_server.models.checkpoint import Checkpoint
from turret_server.models.config import DecoderConfig
from turret_server.models.weights import (
    check_tensors,
    expected_tensors,
    norm_tensor_name,
    tensor_name,
)


def model_shape(
    config: DecoderConfig,
    name: str,
    embed_scale: float,
    weight: Callable[[Site], Tensor],
    bias: Callable[[Site], Tensor | None],
    gain: Callable[[Site], Tensor],
) -> ModelShape:
    """The shape of a base with these sizes.

    Args:
        config: its sizes and options.
        name: in messages.
        embed_scale: in the served dtype.
        weight, bias, gain: see `ModelShape`.
    """
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return ModelShape(
        num_layers=config.num_layers,
        dims={
            Module.Q: (hidden, q),
            Module.K: (hidden, kv),
            Module.V: (hidden, kv),
            Module.O: (q, hidden),
            Module.GATE: (hidden, inner),
            Module.UP: (hidden, inner),
            Module.DOWN: (inner, hidden),
            Module.EMBED: (vocab, hidden),
            Module.HEAD: (hidden, vocab),
        },
        has_bias=frozenset(m for m in LINEARS if bias(Site(0, m)) is not None),
        name=name,
        tied_head=config.tie_word_embeddings,
        weight=weight,
        bias=bias,
        gain=gain,
        gain_offset=config.norm_offset,
        has_qk_norms=config.qk_norm,
        has_post_norms=config.post_norms,
        activation=config.activation,
        embed_scale=embed_scale,
        head_dim=config.head_dim,
    )


def stored_shape(
    folder: Path,
    dtype: torch.dtype,
    quantization: Method | None = None,
    device: torch.device = torch.device("cpu"),  # noqa: B008  (a constant)
) -> ModelShape:
    """The shape of the whole base in `folder`, of which this process holds a shard, or nothing.

    Weights, biases and gains are read from its files whenever a format asks for one.

    Args:
        folder: the model folder.
        dtype: the served dtype.
        quantization: of the linears of the layers, whose weights are then read dequantised.
        device: that of the shards: each kind of device rounds in its own kernels' formats.

    Raises:
        StartupError: the model cannot be served exactly as its files ask.
    """
    config = DecoderConfig.from_folder(folder)
    checkpoint, shapes = Checkpoint(folder, config.has_vision), expected_tensors(config)
    check_tensors(checkpoint, config, shapes)

    def read(name: str) -> Tensor:
        out = torch.empty(shapes[name], dtype=dtype)
        checkpoint.read(name, out)
        return out

    def weight(site: Site) -> Tensor:
        found = read(tensor_name(site, "weight", config))
        if quantization is None or site.module not in LINEARS:
            return found
        return unpack_linear(quantize_linear(found.to(device), quantization)).cpu()

    def bias(site: Site) -> Tensor | None:
        name = tensor_name(site, "bias", config)
        return read(name) if name in shapes else None

    def gain(site: Site) -> Tensor:
        return read(norm_tensor_name(site, config))

    embed_scale = float(torch.tensor(config.embed_scale, dtype=dtype))
    shape = model_shape(config, str(folder), embed_scale, weight, bias, gain)
    return replace(shape, is_quantized=quantization is not None)
