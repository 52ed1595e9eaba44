"""BERT and RoBERTa with a classifier on top: padded batches, in plain torch.

Devlin et al. 2019 (arXiv 1810.04805), Liu et al. 2019 (arXiv 1907.11692).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from turret_server.models.checkpoint import Checkpoint
from turret_server.models.encoder_config import EncoderConfig
from turret_server.models.weights import check_shapes, refuse_unexpected

_ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu}
# A buffer of old transformers, and a pooler that RoBERTa's classifier does not read.
_IGNORED = re.compile(r"(bert|roberta)\.embeddings\.position_ids|roberta\.pooler\.dense\.\w+")


class Encoder:
    """An encoder with its classifier.

    Args:
        config: sizes and options.
        weights: by their names in the checkpoint, float32.
    """

    def __init__(self, config: EncoderConfig, weights: dict[str, Tensor]) -> None:
        self.config, self._weights = config, weights

    @classmethod
    def load(cls, folder: Path, config: EncoderConfig, device: torch.device) -> Encoder:
        """Load the weights in `folder`, in float32.

        Raises:
            StartupError: the files are damaged, or tensors are missing, unexpected or misshapen.
        """
        checkpoint, shapes = Checkpoint(folder), expected_tensors(config)
        left_over = {n for n in check_shapes(checkpoint, shapes) if not _IGNORED.fullmatch(n)}
        refuse_unexpected(checkpoint, left_over, config.architecture)
        weights = {}
        for name, shape in shapes.items():
            weights[name] = torch.empty(shape, dtype=torch.float32, device=device)
            checkpoint.read(name, weights[name])
        return cls(config, weights)

    @torch.inference_mode()
    def logits(self, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]]) -> Tensor:
        """Run inputs of any lengths together.

        Args:
            ids: token ids of each input.
            types: token types of each, 0 or 1; RoBERTa knows one type only and ignores them.

        Returns:
            float32 [N, labels].
        """
        longest = max(map(len, ids))
        device = self.device
        lengths = torch.tensor([len(row) for row in ids], device=device)
        real = torch.arange(longest, device=device) < lengths[:, None]
        mask = None if bool(real.all()) else real[:, None, None]
        x = self._embed(_padded(ids, longest).to(device), _padded(types, longest).to(device))
        for layer in range(self.config.num_layers):
            prefix = f"{self.config.kind}.encoder.layer.{layer}."
            attended = self._attention(x, prefix, mask)
            x = self._norm(x + attended, f"{prefix}attention.output.LayerNorm")
            inner = self._linear(x, f"{prefix}intermediate.dense")
            inner = _ACTIVATIONS[self.config.activation](inner)
            inner = self._linear(inner, f"{prefix}output.dense")
            x = self._norm(x + inner, f"{prefix}output.LayerNorm")
        return self._classify(x[:, 0])

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(iter(self._weights.values())).device

    def _embed(self, ids: Tensor, types: Tensor) -> Tensor:
        config, prefix = self.config, f"{self.config.kind}.embeddings."
        types = types.clamp(max=0 if config.kind == "roberta" else config.num_types - 1)
        first = config.first_position
        positions = torch.arange(first, first + ids.shape[1], device=ids.device)
        x = self._weights[f"{prefix}word_embeddings.weight"][ids]
        x = x + self._weights[f"{prefix}token_type_embeddings.weight"][types]
        x = x + self._weights[f"{prefix}position_embeddings.weight"][positions]
        return self._norm(x, f"{prefix}LayerNorm")

    def _attention(self, x: Tensor, prefix: str, mask: Tensor | None) -> Tensor:
        rows, length, hidden = x.shape
        q, k, v = (
            self._linear(x, f"{prefix}attention.self.{name}")
            .view(rows, length, self.config.num_heads, -1)
            .transpose(1, 2)
            for name in ("query", "key", "value")
        )
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x.transpose(1, 2).reshape(rows, length, hidden)
        return self._linear(x, f"{prefix}attention.output.dense")

    def _classify(self, x: Tensor) -> Tensor:
        """From the first token's state [N, hidden]."""
        inner, outer = _classifier(self.config)
        return self._linear(torch.tanh(self._linear(x, inner)), outer)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.config.norm_eps)


def expected_tensors(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor that the configuration asks for."""
    hidden, mlp = config.hidden_size, config.intermediate_size
    embeddings, inner = f"{config.kind}.embeddings.", _classifier(config)[0]
    linears = {inner: (hidden, hidden), _classifier(config)[1]: (config.num_labels, hidden)}
    norms = [f"{embeddings}LayerNorm"]
    for layer in range(config.num_layers):
        prefix = f"{config.kind}.encoder.layer.{layer}."
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            linears[f"{prefix}attention.{name}"] = (hidden, hidden)
        linears[f"{prefix}intermediate.dense"] = (mlp, hidden)
        linears[f"{prefix}output.dense"] = (hidden, mlp)
        norms += [f"{prefix}attention.output.LayerNorm", f"{prefix}output.LayerNorm"]
    shapes: dict[str, tuple[int, ...]] = {
        f"{embeddings}word_embeddings.weight": (config.vocab_size, hidden),
        f"{embeddings}position_embeddings.weight": (config.num_positions, hidden),
        f"{embeddings}token_type_embeddings.weight": (config.num_types, hidden),
    }
    for name, (out_features, in_features) in linears.items():
        shapes[f"{name}.weight"] = (out_features, in_features)
        shapes[f"{name}.bias"] = (out_features,)
    for name in norms:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (hidden,)
    return shapes


def _classifier(config: EncoderConfig) -> tuple[str, str]:
    """The two linears behind the layers; tanh is between them."""
    if config.kind == "bert":
        return "bert.pooler.dense", "classifier"
    return "classifier.dense", "classifier.out_proj"


def _padded(rows: Sequence[Sequence[int]], length: int) -> Tensor:
    """int64 [N, length], filled up with 0: what stands there is masked."""
    return torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
