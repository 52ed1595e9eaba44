"""From the files of a checkpoint to weights laid out for serving, one copy in memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from turret_adapters.sharding import Shard
from turret_adapters.spec import Module, Site
from turret_kernels.linear import LinearWeight, pack_linear, quantize_linear
from turret_kernels.quantized import Method, unfit
from turret_server.errors import StartupError
from turret_server.models.checkpoint import Checkpoint
from turret_server.models.config import DecoderConfig

Progress = Callable[[int, int], None]  # bytes read so far, bytes in all

_EMBED, _NORM, _HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
_SCORE = "score.weight"  # in place of the head, in a model that classifies sequences

# Old Llama checkpoints store the rotary frequencies, which follow from the configuration.
_IGNORED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm.

    Attributes:
        weight: [n], as it is stored, in the served dtype.
        gain: [n], what the norm multiplies by: the same, or `1 + weight` in float32 (Gemma).
    """

    weight: Tensor
    gain: Tensor


@dataclass(slots=True, kw_only=True)
class LayerWeights:
    """One decoder layer; q, k, v are one matrix, gate and up another (rows in this order)."""

    input_norm: Norm
    qkv: LinearWeight
    qkv_bias: Tensor | None
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    o: LinearWeight
    o_bias: Tensor | None
    attention_out_norm: Norm | None = None
    mlp_norm: Norm
    gate_up: LinearWeight
    gate_up_bias: Tensor | None
    down: LinearWeight
    down_bias: Tensor | None
    mlp_out_norm: Norm | None = None


@dataclass(slots=True)
class DecoderWeights:
    """All weights of a decoder, or of one shard of it, in the served dtype, on the device.

    Embedding and norms are whole in every shard.

    Attributes:
        embed: [vocab, hidden].
        layers: in order.
        norm: the last norm.
        head: [vocab, hidden], packed; of a shard its part of the vocabulary; [labels, hidden] of
            a model that classifies sequences.
        digest: identity of the model: SHA-256, in hex, over its configuration and a sample of its
            tensors (see Checkpoint.digest), the same for every served dtype, but not for every
            quantisation.
    """

    embed: Tensor
    layers: list[LayerWeights]
    norm: Norm
    head: LinearWeight
    digest: str


def expected_tensors(config: DecoderConfig, num_labels: int = 0) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor that the configuration asks for.

    Args:
        config: sizes and options.
        num_labels: of a model that classifies sequences; 0 for one that continues them.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {_EMBED: (config.vocab_size, hidden), _NORM: (hidden,)}
    if num_labels:
        shapes[_SCORE] = (num_labels, hidden)
    elif not config.tie_word_embeddings:
        shapes[_HEAD] = (config.vocab_size, hidden)
    linears = {
        "self_attn.q_proj": (q, hidden, config.qkv_bias),
        "self_attn.k_proj": (kv, hidden, config.qkv_bias),
        "self_attn.v_proj": (kv, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, q, config.o_bias),
        "mlp.gate_proj": (inner, hidden, config.mlp_bias),
        "mlp.up_proj": (inner, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, inner, config.mlp_bias),
    }
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for name, (out_features, in_features, bias) in linears.items():
            shapes[f"{prefix}{name}.weight"] = (out_features, in_features)
            if bias:
                shapes[f"{prefix}{name}.bias"] = (out_features,)
        for field, name in _norm_names(config).items():
            width = config.head_dim if field in ("q_norm", "k_norm") else hidden
            shapes[f"{prefix}{name}.weight"] = (width,)
    return shapes


def tensor_name(site: Site, kind: str, config: DecoderConfig) -> str:
    """The tensor that holds the "weight" or "bias" of a linear, the embedding or the head."""
    if site.module is Module.EMBED or (site.module is Module.HEAD and config.tie_word_embeddings):
        return f"model.embed_tokens.{kind}"
    if site.module is Module.HEAD:
        return f"lm_head.{kind}"
    block = "mlp" if site.module in (Module.GATE, Module.UP, Module.DOWN) else "self_attn"
    return f"model.layers.{site.layer}.{block}.{site.module}.{kind}"


def norm_tensor_name(site: Site, config: DecoderConfig) -> str:
    """The tensor that holds the weight of a norm, by the sites of `ModelShape.gain`.

    Raises:
        KeyError: the model has no norm there.
    """
    if site.module is Module.HEAD_IN:
        return _NORM
    field = {
        Module.ATTENTION_IN: "input_norm",
        Module.Q: "q_norm",
        Module.K: "k_norm",
        Module.ATTENTION_OUT: "attention_out_norm",
        Module.MLP_IN: "mlp_norm",
        Module.MLP_OUT: "mlp_out_norm",
    }[site.module]
    return f"model.layers.{site.layer}.{_norm_names(config)[field]}.weight"


def _norm_names(config: DecoderConfig) -> dict[str, str]:
    """The norms of a layer, by their field in `LayerWeights`."""
    names = {"input_norm": "input_layernorm"}
    if config.qk_norm:
        names |= {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
    if not config.post_norms:
        return names | {"mlp_norm": "post_attention_layernorm"}
    return names | {
        "attention_out_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_out_norm": "post_feedforward_layernorm",
    }


def load_weights(
    folder: Path,
    config: DecoderConfig,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
    shard: Shard = Shard(),  # noqa: B008  (a constant)
    quantization: Method | None = None,
    num_labels: int = 0,
) -> DecoderWeights:
    """Read, convert, fuse and pack or quantise the weights in `folder`, or a shard of them.

    Beside the weights, at most one fused tensor and what becomes of it are held at a time.

    Args:
        folder: the model folder.
        config: its configuration.
        dtype: the served dtype.
        device: where the weights go.
        progress: called after every tensor.
        shard: which part of them; see `turret_adapters.sharding`. The biases of o and down are
            rank 0's alone, because their outputs are added up.
        quantization: of the linears of the layers; embedding, head and norms stay as they are.
            Every shard is rounded as it is in the whole.
        num_labels: as for `expected_tensors`; the head is then [labels, hidden].

    Raises:
        StartupError: the files are damaged, or tensors are missing, unexpected or of other shapes,
            or of shapes that cannot be quantised.
    """
    checkpoint = Checkpoint(folder, config.has_vision)
    shapes = expected_tensors(config, num_labels)
    check_tensors(checkpoint, config, shapes)
    if quantization is not None:
        check_quantization(folder, config, quantization, shard.world)
    total, done = sum(checkpoint.num_bytes(name) for name in shapes), 0

    def stacked(names: Sequence[str], split: int | None = None) -> Tensor:
        """The named tensors as one, row under row, in the served dtype.

        Of each, where `split` is a dimension, the shard's part along it.
        """
        nonlocal done
        parts = [_part(shapes[name], shard, split) for name in names]
        sizes = [[part.stop - part.start for part in parts_of] for parts_of in parts]
        rows = [size[0] for size in sizes]
        out = torch.empty(sum(rows), *sizes[0][1:], dtype=dtype, device=device)
        for name, part, target in zip(names, parts, out.split(rows), strict=True):
            checkpoint.read(name, target, part)
            done += checkpoint.num_bytes(name)
            if progress is not None:
                progress(done, total)
        return out

    norms, offset = _norm_names(config), config.norm_offset

    def norm(name: str) -> Norm:
        weight = stacked([name])
        return Norm(weight, weight.float() + offset if offset else weight)

    def layer_weights(layer: int) -> LayerWeights:
        prefix = f"model.layers.{layer}."

        def fused(*names: str, split: int) -> LinearWeight:
            weights = [f"{prefix}{name}.weight" for name in names]
            if quantization is None:
                return pack_linear(stacked(weights, split))
            if split == 0:
                return quantize_linear(stacked(weights, split), quantization)
            whole = stacked(weights)  # a scale is of all the inputs, wherever they lie
            return quantize_linear(whole, quantization, shard.of(whole.shape[1]))

        def bias(*names: str, split: int | None) -> Tensor | None:
            biases = [f"{prefix}{name}.bias" for name in names]
            if biases[0] not in shapes:
                return None
            found = stacked(biases, split)  # of every rank: the digest covers what was read
            return None if split is None and shard.rank else found

        qkv = [f"self_attn.{name}_proj" for name in "qkv"]
        gate_up = [f"mlp.{name}_proj" for name in ("gate", "up")]
        return LayerWeights(
            qkv=fused(*qkv, split=0),
            qkv_bias=bias(*qkv, split=0),
            o=fused("self_attn.o_proj", split=1),
            o_bias=bias("self_attn.o_proj", split=None),
            gate_up=fused(*gate_up, split=0),
            gate_up_bias=bias(*gate_up, split=0),
            down=fused("mlp.down_proj", split=1),
            down_bias=bias("mlp.down_proj", split=None),
            **{field: norm(f"{prefix}{name}.weight") for field, name in norms.items()},
        )

    embed = stacked([_EMBED])
    layers = [layer_weights(layer) for layer in range(config.num_layers)]
    last = norm(_NORM)
    if config.tie_word_embeddings and not num_labels:
        head = pack_linear(embed[shard.of(config.vocab_size)])
    else:
        head = pack_linear(stacked([_SCORE if num_labels else _HEAD], split=0))
    identity = f"{asdict(config)} {checkpoint.digest()}"
    if quantization is not None:
        identity += f" {quantization}"
    return DecoderWeights(embed, layers, last, head, hashlib.sha256(identity.encode()).hexdigest())


def _part(shape: tuple[int, ...], shard: Shard, split: int | None) -> tuple[slice, ...]:
    return tuple(
        shard.of(size) if dimension == split else slice(0, size)
        for dimension, size in enumerate(shape)
    )


def check_tensors(
    checkpoint: Checkpoint, config: DecoderConfig, shapes: dict[str, tuple[int, ...]]
) -> None:
    """Refuse missing, unexpected and misshapen tensors, by name.

    Raises:
        StartupError: there are some.
    """
    unexpected = {n for n in check_shapes(checkpoint, shapes) if not _IGNORED.fullmatch(n)}
    if config.tie_word_embeddings and _HEAD in unexpected:
        # Some tools store the tied head again; transformers ties only equal ones.
        if checkpoint.equal(_HEAD, _EMBED):
            unexpected.remove(_HEAD)
        else:
            checkpoint.refuse(
                f"config.json ties the head to the embedding, but {_HEAD!r} differs from it",
                'Set "tie_word_embeddings": false in config.json.',
            )
    refuse_unexpected(checkpoint, unexpected, config.architecture)


def check_shapes(checkpoint: Checkpoint, shapes: dict[str, tuple[int, ...]]) -> set[str]:
    """Refuse missing and misshapen tensors, by name; return the names of those left over.

    Raises:
        StartupError: there are some.
    """
    stored = checkpoint.names()
    if missing := sorted(shapes.keys() - stored):
        checkpoint.refuse(f"its files lack {_listed(missing)}")
    for name, shape in shapes.items():
        if checkpoint.shape(name) != shape:
            checkpoint.refuse(
                f"tensor {name!r} is {list(checkpoint.shape(name))}, but config.json "
                f"makes it {list(shape)}",
                "Use the config.json that belongs to these weights.",
            )
    return stored - shapes.keys()


def refuse_unexpected(checkpoint: Checkpoint, names: set[str], architecture: str) -> None:
    """Refuse tensors that the architecture does not have.

    Raises:
        StartupError: there are some.
    """
    if names:
        checkpoint.refuse(
            f"its files hold {_listed(sorted(names))}, which a {architecture} lacks",
            "Serve the checkpoint of a plain decoder (merge adapters, drop extra heads).",
        )


def check_quantization(folder: Path, config: DecoderConfig, method: Method, world: int = 1) -> None:
    """Refuse linears that the method has no kernel for, by name.

    Args:
        folder: of the model, for the message.
        config: of the whole model.
        method: of quantisation.
        world: how many processes share every linear.

    Raises:
        StartupError: there is one.
    """
    part, fix = "", "Use another --quantization, or none."
    if world > 1:
        part = f"what each of {world} processes has of "
        fix = "Use another --quantization or --tensor-parallel."
    for name, shape in expected_tensors(config.split(world)).items():
        if name.endswith("_proj.weight") and (reason := unfit(method, *shape)):
            raise StartupError(
                f"model {str(folder)!r} cannot be served",
                f"--quantization {method} does not fit {part}{name!r}: {reason}",
                fix,
            )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more
