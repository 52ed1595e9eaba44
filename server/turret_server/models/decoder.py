"""The decoder of the Llama family, written for serving: flat token rows over a paged cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from turret_adapters.plan import Group
from turret_adapters.sharding import Shard
from turret_adapters.spec import ModelShape, Module, Site
from turret_kernels import gpu
from turret_kernels.linear import LinearWeight, linear, unpack_linear
from turret_kernels.norms import add_rms_norm, rms_norm
from turret_kernels.paged_attention import paged_attention
from turret_kernels.quantized import Method
from turret_kernels.rope_kv import KVCache, rope_and_store
from turret_kernels.sparse_mlp import MlpWeights
from turret_server.errors import StartupError
from turret_server.models.batch import Batch
from turret_server.models.config import DecoderConfig
from turret_server.models.peers import Peers
from turret_server.models.rope import rope_table
from turret_server.models.shape import model_shape
from turret_server.models.weights import DecoderWeights, LayerWeights, Norm, Progress, load_weights


class Decoder:
    """Llama 2/3, SmolLM, Yi, Mistral, Qwen2, Qwen3 and Gemma 3 in one forward pass.

    Args:
        config: sizes and options; of a shard, its own heads and neurons.
        weights: in the served dtype, on the device.
        max_model_len: the longest sequence served, in tokens.
        name: the model's name in messages.
        peers: the processes that hold the other shards; None for a whole model.
    """

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        max_model_len: int,
        name: str,
        peers: Peers | None = None,
    ) -> None:
        self.config, self.weights, self.name, self._peers = config, weights, name, peers
        self.dtype, self.device = weights.embed.dtype, weights.embed.device
        ropes = [config.local_rope if window else config.rope for window in config.windows]
        tables = {
            rope: rope_table(rope, config.head_dim, max_model_len).to(self.device)
            for rope in dict.fromkeys(ropes)
        }
        self._cos_sin = [tables[rope] for rope in ropes]  # by layer
        self._heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        # Rounded as transformers rounds it: Gemma 3 was trained with 25.25 for sqrt(640).
        self._embed_scale = float(torch.tensor(config.embed_scale, dtype=self.dtype))
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        hidden, inner = config.hidden_size, config.intermediate_size
        self._linear_rows = {
            Group.QKV: ((Module.Q, q), (Module.K, kv), (Module.V, kv)),
            Group.O: ((Module.O, hidden),),
            Group.GATE_UP: ((Module.GATE, inner), (Module.UP, inner)),
            Group.DOWN: ((Module.DOWN, hidden),),
        }

    @classmethod
    def load(
        cls,
        folder: Path,
        dtype: torch.dtype,
        device: torch.device,
        max_model_len: int,
        progress: Progress | None = None,
        peers: Peers | None = None,
        quantization: Method | None = None,
    ) -> Decoder:
        """Load the model in `folder`, or this process's shard of it.

        Args:
            folder: holds `config.json` and safetensors.
            dtype: the served dtype; weights stored in another are converted.
            device: where weights and cache live.
            max_model_len: the longest sequence to be served, in tokens.
            progress: called with (bytes read, bytes in all) while the weights are read.
            peers: the processes that hold the other shards.
            quantization: of the linears of the layers, None for none.

        Raises:
            StartupError: the model cannot be served exactly as its files ask.
        """
        config = DecoderConfig.from_folder(folder)
        if max_model_len > config.max_context:
            raise StartupError(
                f"a context of {max_model_len} tokens cannot be served",
                f"the model {str(folder)!r} was made for {config.max_context}",
                f"Lower --max-model-len to {config.max_context}, or extend the model with a "
                "RoPE scaling in its config.json.",
            )
        shard = Shard() if peers is None else peers.shard
        weights = load_weights(folder, config, dtype, device, progress, shard, quantization)
        return cls(config.split(shard.world), weights, max_model_len, str(folder), peers)

    @torch.inference_mode()
    def forward(self, batch: Batch, kv: list[KVCache]) -> Tensor:
        """Run every token row, extend the cache, and return the logits asked for.

        Args:
            batch: T token rows.
            kv: the cache, one per layer; written at `batch.slots`.

        Returns:
            float32 [L, vocab], in the order of `batch.logit_rows`; on ranks other than 0 of no use.
        """
        return self.run(self.embed(batch), batch, kv)

    def embed(self, batch: Batch, out: Tensor | None = None) -> Tensor:
        """The embedded tokens [T, hidden], adapted; in `out` where it is given."""
        residual = torch.index_select(self.weights.embed, 0, batch.token_ids, out=out)
        batch.adapters.embed(residual, batch.token_ids, self._embed_scale)
        return residual

    def run(self, residual: Tensor, batch: Batch, kv: list[KVCache]) -> Tensor:
        """Everything behind the embedding; the part that a graph can hold.

        Args:
            residual: [T, hidden], the embedded tokens; added to in place.
            batch: as for `forward`; without `logit_rows`, every row has logits.
            kv: as for `forward`.
        """
        weights, eps = self.weights, self.config.rms_norm_eps
        x: Tensor | None = None  # what the next norm adds to the residual
        for index, (layer, cache) in enumerate(zip(weights.layers, kv, strict=True)):
            x = self._join(x, residual, layer.input_norm)
            x = self._attention(x, index, layer, cache, batch)
            x = add_rms_norm(x, residual, layer.mlp_norm.gain, eps)
            x = self._mlp(x, index, layer, batch)
            if batch.adapters.touches(index, Group.BLOCK):
                add_rms_norm(x, residual, layer.mlp_norm.gain, eps)  # for the sum alone
                batch.adapters.touch(index, Group.BLOCK, residual)
                x = None
        if batch.logit_rows is not None:
            if len(batch.logit_rows) == 0:
                size = 0, self.config.vocab_size
                return torch.empty(size, dtype=torch.float32, device=self.device)
            # From here on, only the rows that somebody samples from.
            rows = gpu.to_device(batch.logit_rows, residual.device)
            residual, x = residual[rows], None if x is None else x[rows]
        x = self._join(x, residual, weights.norm)
        batch.adapters.touch(-1, Group.HEAD_IN, x)
        logits = linear(x, weights.head, out_dtype=torch.float32)
        if self._peers is not None:
            logits = self._peers.gather(logits, self.config.vocab_size)
        batch.adapters.head(logits, x)
        return logits

    def _join(self, x: Tensor | None, residual: Tensor, norm: Norm) -> Tensor:
        """Add what a block computed, if that is still to be done, and normalise."""
        eps = self.config.rms_norm_eps
        if x is None:
            return rms_norm(residual, norm.gain, eps)
        return add_rms_norm(x, residual, norm.gain, eps)

    def _attention(
        self, x: Tensor, index: int, layer: LayerWeights, cache: KVCache, batch: Batch
    ) -> Tensor:
        config, adapters = self.config, batch.adapters
        adapters.touch(index, Group.ATTENTION_IN, x)
        qkv = adapters.linear(index, Group.QKV, x, layer.qkv, layer.qkv_bias)
        # Views of the fused rows: [T, heads, head_dim] each.
        q, k, v = qkv.view(-1, sum(self._heads), config.head_dim).split_with_sizes(self._heads, 1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q = rms_norm(q, layer.q_norm.gain, config.rms_norm_eps)
            k = rms_norm(k, layer.k_norm.gain, config.rms_norm_eps)
        rope_and_store(q, k, v, self._cos_sin[index], batch.positions, batch.slots, cache)
        adapters.store(index, batch.slots, cache)
        window = config.windows[index]
        x = paged_attention(q, cache, batch.attention, config.attention_scale, window)
        adapters.touch(index, Group.HEADS, x)
        x = self._sum(adapters.linear(index, Group.O, x, layer.o, layer.o_bias))
        if layer.attention_out_norm is not None:
            x = rms_norm(x, layer.attention_out_norm.gain, config.rms_norm_eps)
            adapters.touch(index, Group.ATTENTION_OUT, x)
        return x

    def _mlp(self, x: Tensor, index: int, layer: LayerWeights, batch: Batch) -> Tensor:
        config, adapters = self.config, batch.adapters
        weights = MlpWeights(
            layer.gate_up, layer.gate_up_bias, layer.down, layer.down_bias, config.activation
        )
        x = self._sum(adapters.mlp(index, x, weights))
        if layer.mlp_out_norm is not None:
            x = rms_norm(x, layer.mlp_out_norm.gain, config.rms_norm_eps)
            adapters.touch(index, Group.MLP_OUT, x)
        return x

    def _sum(self, x: Tensor) -> Tensor:
        """What o or down puts out, of which every shard has computed a part."""
        return x if self._peers is None else self._peers.sum(x)

    @property
    def is_shard(self) -> bool:
        """Do other processes take part in every step?"""
        return self._peers is not None

    @property
    def has_graphs(self) -> bool:
        """Do all but its caches launch native kernels alone, so that graphs can hold `run`?"""
        layer = self.weights.layers[0]
        linears = (self.weights.head, layer.qkv, layer.o, layer.gate_up, layer.down)
        return all(weight.packed for weight in linears)

    @property
    def quantization(self) -> Method | None:
        """How the linears of the layers were quantised, None if they were not."""
        return self.weights.layers[0].qkv.method

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of cache that one token takes, over all layers."""
        config = self.config
        return 2 * config.num_layers * config.num_kv_heads * config.head_dim * self.dtype.itemsize

    def allocate_kv(self, num_blocks: int, block_tokens: int) -> list[KVCache]:
        """A cache of `num_blocks` pages of `block_tokens` tokens, for each layer.

        Uninitialised, so that the operating system hands out a page when it is first written.
        """
        config = self.config
        shape = (num_blocks, config.num_kv_heads, block_tokens, config.head_dim)

        def pages() -> Tensor:
            return torch.empty(shape, dtype=self.dtype, device=self.device)

        return [KVCache(pages(), pages()) for _ in range(config.num_layers)]

    @property
    def shape(self) -> ModelShape:
        """The sizes that an adapter must fit; of a shard, those that its banks must fit."""
        shape = model_shape(
            self.config, self.name, self._embed_scale, self.weight, self.bias, self.gain
        )
        return replace(shape, is_quantized=self.quantization is not None)

    def weight(self, site: Site) -> Tensor:
        """The base's weight at a site as it is served: [out, in]; the embedding [vocab, hidden].

        In the served dtype; what was quantised in float32, dequantised. Of a shard, its own part.
        So with `bias`.
        """
        if site.module is Module.EMBED:
            return self.weights.embed
        if site.module is Module.HEAD:
            return unpack_linear(self.weights.head)
        layer, part = self.weights.layers[site.layer], self._part(site.module)
        fused: LinearWeight = {
            Group.QKV: layer.qkv,
            Group.O: layer.o,
            Group.GATE_UP: layer.gate_up,
            Group.DOWN: layer.down,
        }[Group.of(site.module)]
        return unpack_linear(fused)[part]

    def gain(self, site: Site) -> Tensor:
        """The weight of a norm as it is stored: see `ModelShape.gain`."""
        if site.module is Module.HEAD_IN:
            return self.weights.norm.weight
        layer = self.weights.layers[site.layer]
        norm = {
            Module.ATTENTION_IN: layer.input_norm,
            Module.Q: layer.q_norm,
            Module.K: layer.k_norm,
            Module.ATTENTION_OUT: layer.attention_out_norm,
            Module.MLP_IN: layer.mlp_norm,
            Module.MLP_OUT: layer.mlp_out_norm,
        }[site.module]
        if norm is None:
            raise ValueError(f"this model has no norm at {site.module}")
        return norm.weight

    def bias(self, site: Site) -> Tensor | None:
        """The base's own bias at a linear: [out_features], a view; None where it has none."""
        if site.layer < 0:
            return None
        layer = self.weights.layers[site.layer]
        fused = {
            Group.QKV: layer.qkv_bias,
            Group.O: layer.o_bias,
            Group.GATE_UP: layer.gate_up_bias,
            Group.DOWN: layer.down_bias,
        }[Group.of(site.module)]
        return None if fused is None else fused[self._part(site.module)]

    def _part(self, module: Module) -> slice:
        """Where the rows of a linear lie among those of its group."""
        first = 0
        for other, rows in self._linear_rows[Group.of(module)]:
            if other is module:
                return slice(first, first + rows)
            first += rows
        raise ValueError(f"{module} is no linear of a layer")
