"""Fit a LoFiT adapter (Yin, Ye and Durrett, 2024, arXiv 2406.01563) in its two steps.

1. Every head gets a scale: `z_h <- (1 + A_h) z_h`. Trained with an L1 penalty; the K heads with
   the largest `||A_h||_2` are selected, and A is thrown away.
2. The selected heads get an offset: `z_h <- z_h + v_h`. That is the adapter.

The base model stays as it is; only answers carry the loss.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from turret_adapters.fit.examples import FitError, Row, batches, split
from turret_adapters.own_format import CONFIG_NAME, VERSION, WEIGHTS_NAME

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_INIT_STD = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class LoFitSettings:
    """How to train. The defaults are the paper's, for Llama 2 7B.

    Attributes:
        heads: how many to select: a share of all heads (float), or their number (int).
        select_epochs: passes over the data in step 1, at most.
        tune_epochs: the same in step 2.
        select_learning_rate: of A.
        tune_learning_rate: of v.
        l1: weight of `sum |A|` in the loss of step 1.
        batch: examples per step.
        held_out: share of the examples that is not trained on and says when to stop.
        patience: passes without a better held-out loss after which a step ends.
        seed: of the split, the order and the initial values.
    """

    heads: float | int = 0.03
    select_epochs: int = 5
    tune_epochs: int = 5
    select_learning_rate: float = 5e-3
    tune_learning_rate: float = 1e-2
    l1: float = 5e-4
    batch: int = 8
    held_out: float = 0.1
    patience: int = 2
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the fitting is.

    Attributes:
        stage: "select" or "tune".
        step: batches trained in this stage.
        total: batches it will have at most.
        loss: of the last batch, per token.
        held_out: loss of the held-out part after the last whole pass; before the first, the base's.
    """

    stage: str
    step: int
    total: int
    loss: float
    held_out: float


@dataclass(frozen=True, slots=True)
class LoFit:
    """A fitted adapter.

    Attributes:
        layers: int64 [K].
        heads: int64 [K], query heads of those layers, most important first.
        v: float32 [K, head_dim].
        losses: held-out loss per answer token: "base", "select" (with A) and "tune" (with v).
    """

    layers: Tensor
    heads: Tensor
    v: Tensor
    losses: dict[str, float] = field(default_factory=dict)

    def save(self, folder: Path, base_model: str) -> None:
        """Write the folder that a server loads.

        Args:
            folder: made where it does not exist.
            base_model: name of the model that it was fitted on.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"layers": self.layers, "heads": self.heads, "v": self.v}
        save_file({k: t.contiguous() for k, t in tensors.items()}, folder / WEIGHTS_NAME)
        config = {"kind": "lofit", "version": VERSION, "base_model": base_model}
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")

    @contextmanager
    def applied(self, model: PreTrainedModel) -> Iterator[None]:
        """Inside, the transformers model computes with the adapter."""
        heads = _Heads(model)
        full = torch.zeros(heads.size)
        full[self.layers, self.heads] = self.v
        with heads.hooked(lambda layer, z: z + full[layer].flatten().to(z)):
            yield


def fit_lofit(
    model: PreTrainedModel,
    data: Sequence[Row],
    settings: LoFitSettings | None = None,
    progress: Callable[[Progress], None] = lambda at: None,
) -> LoFit:
    """Select heads and learn their offsets.

    Args:
        model: a causal language model of the Llama family, which is not changed; in float32, or in
            bfloat16 where the speed is worth the noise.
        data: the examples (see `examples.encode`).
        settings: how to train.
        progress: called after every batch.

    Returns:
        The adapter, with the best held-out loss that was seen.

    Raises:
        FitError: too few examples or heads, or a model whose attention is not known.
    """
    settings = settings or LoFitSettings()
    trainable = [p for p in model.parameters() if p.requires_grad]
    was_training = model.training
    model.eval().requires_grad_(False)
    try:
        return _Fit(model, data, settings, progress).run()
    finally:
        model.train(was_training)
        for parameter in trainable:
            parameter.requires_grad_(True)


# What to do to the heads' outputs z [..., heads * head_dim] of a layer.
Change = Callable[[int, Tensor], Tensor]


class _Heads:
    """The inputs of every o_proj."""

    def __init__(self, model: PreTrainedModel):
        layers = getattr(model.base_model, "layers", ())
        self._outputs = [getattr(getattr(x, "self_attn", None), "o_proj", None) for x in layers]
        if not self._outputs or not all(isinstance(o, torch.nn.Linear) for o in self._outputs):
            raise FitError(
                "nothing was fitted",
                f"{type(model).__name__} has no layers with self_attn.o_proj",
                "Use a model of the Llama family.",
            )
        count = model.config.num_attention_heads
        first: Any = self._outputs[0]
        self.size = (len(self._outputs), count, first.in_features // count)

    @contextmanager
    def hooked(self, change: Change) -> Iterator[None]:
        def hook(layer: int) -> Callable[[torch.nn.Module, tuple[Tensor]], tuple[Tensor]]:
            return lambda module, args: (change(layer, args[0]),)

        handles = [
            output.register_forward_pre_hook(hook(layer))
            for layer, output in enumerate(self._outputs)
            if output is not None
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _Fit:
    """One fitting."""

    def __init__(
        self,
        model: PreTrainedModel,
        data: Sequence[Row],
        settings: LoFitSettings,
        progress: Callable[[Progress], None],
    ):
        self._model, self._settings, self._progress = model, settings, progress
        self._train, self._held_out = split(data, settings.held_out, settings.seed)
        self._heads = _Heads(model)
        layers, heads, _ = self._heads.size
        count, every = settings.heads, layers * heads
        self._count = count if isinstance(count, int) else math.ceil(count * every - 1e-6)
        if not 1 <= self._count <= every:
            raise FitError(
                "nothing was fitted",
                f"heads is {count}, and the model has {every}",
                f"Choose a share above 0 and up to 1, or a number from 1 to {every}.",
            )
        self._random = torch.Generator().manual_seed(settings.seed)

    def run(self) -> LoFit:
        settings, size = self._settings, self._heads.size
        losses = {"base": self._loss_held_out()}
        scales = torch.empty(size).normal_(0, _INIT_STD, generator=self._random)

        def scaled(a: Tensor) -> Change:
            return lambda layer, z: z + z * a[layer].flatten().to(z)

        a, losses["select"] = self._stage(
            "select",
            scales,
            scaled,
            settings.select_learning_rate,
            settings.select_epochs,
            losses["base"],
            penalty=lambda a: settings.l1 * a.abs().sum(),
        )
        chosen = a.norm(dim=-1).flatten().topk(self._count).indices
        offsets = torch.empty(self._count, size[2]).normal_(0, _INIT_STD, generator=self._random)
        is_chosen = torch.zeros(size[0], dtype=torch.bool)
        is_chosen[chosen // size[1]] = True

        def shifted(v: Tensor) -> Change:
            full = torch.zeros(size).flatten(0, 1).index_put((chosen,), v).view(size[0], -1)
            return lambda layer, z: z + full[layer].to(z) if is_chosen[layer] else z

        v, losses["tune"] = self._stage(
            "tune",
            offsets,
            shifted,
            settings.tune_learning_rate,
            settings.tune_epochs,
            losses["base"],
        )
        return LoFit(chosen // size[1], chosen % size[1], v, losses)

    def _stage(
        self,
        stage: str,
        start: Tensor,
        change: Callable[[Tensor], Change],
        learning_rate: float,
        epochs: int,
        held_out: float,
        penalty: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, float]:
        """Train one tensor; the best one and its held-out loss."""
        weights = start.requires_grad_(True)
        rng = random.Random(self._settings.seed)
        total = epochs * len(batches(self._train, self._settings.batch, random.Random(0)))
        optimizer = torch.optim.AdamW([weights], lr=learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=total)
        best, best_loss, waited, step = weights.detach().clone(), float("inf"), 0, 0
        for _ in range(epochs):
            for batch in batches(self._train, self._settings.batch, rng):
                with self._heads.hooked(change(weights)):
                    summed, count = self._loss(batch)
                    loss = summed / count
                    (loss if penalty is None else loss + penalty(weights)).backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                step += 1
                self._progress(Progress(stage, step, total, loss.item(), held_out))
            with torch.no_grad(), self._heads.hooked(change(weights)):
                held_out = self._loss_held_out()
            if held_out < best_loss:
                best, best_loss, waited = weights.detach().clone(), held_out, 0
            else:
                waited += 1
                if waited >= self._settings.patience:
                    break
        return best, best_loss

    @torch.no_grad()
    def _loss_held_out(self) -> float:
        found = [self._loss(b) for b in batches(self._held_out, 32, random.Random(0))]
        return float(sum(loss for loss, _ in found)) / sum(count for _, count in found)

    def _loss(self, batch: list[Row]) -> tuple[Tensor, int]:
        """Cross-entropy summed over the tokens of the answers, and their number."""
        ids = pad_sequence([torch.tensor(row.ids) for row in batch], batch_first=True)  # [B, T]
        place = torch.arange(ids.shape[1])[None]
        start = torch.tensor([row.start for row in batch])[:, None]
        end = torch.tensor([len(row.ids) for row in batch])[:, None]
        # Position t predicts token t + 1. Causal attention never looks right, at the padding.
        predicts = (place >= start - 1) & (place < end - 1)
        device = self._model.device
        # The head for the answers alone: most of the vocabulary's cost goes.
        hidden = self._model.base_model(input_ids=ids.to(device), use_cache=False)[0]
        head: Any = self._model.get_output_embeddings()
        logits = head(hidden[predicts.to(device)]).float()
        wanted = ids.roll(-1, dims=1)[predicts].to(device)
        return cross_entropy(logits, wanted, reduction="sum"), len(wanted)
