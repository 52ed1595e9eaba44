"""Fit CATS thresholds (Lee et al., 2024): per layer, the exact quantile of |act(gate)|.

The authors' code takes it from a histogram of the signed range [-1, 1] in 999 bins; here it is
exact, so that layers with small activations reach the sparsity, too. As there, statistics are
taken of the dense model, all layers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from turret_adapters.errors import AdapterError
from turret_adapters.fit.quantiles import Magnitudes, Refined
from turret_adapters.fit.text import Step, TextWindows, perplexity

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ACTIVATIONS = ("silu", "swish", "gelu_pytorch_tanh")

# Called with the layer and act(gate) of some tokens; what it returns goes on.
Watch = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class CatsFit:
    """What came out.

    Attributes:
        thresholds: per layer.
        sparsity: per layer, the share of dead neurons in the held-out text, all layers thresholded.
        shared: the same of neurons that two consecutive tokens both leave dead: what could be
            skipped if they were rows of one step.
        perplexity_before: of the base on the held-out text.
        perplexity_after: of the base with the thresholds.
    """

    thresholds: list[float]
    sparsity: list[float]
    shared: list[float]
    perplexity_before: float
    perplexity_after: float

    def config(self, base_model: str) -> dict[str, Any]:
        """turret_adapter.json."""
        return {
            "kind": "cats",
            "version": 1,
            "base_model": base_model,
            "thresholds": self.thresholds,
        }


def num_steps(text: TextWindows) -> int:
    """How often `fit_cats` calls `step`."""
    return 2 * len(text.fitted) + 2 * len(text.held_out)


def fit_cats(model: PreTrainedModel, text: TextWindows, sparsity: float, step: Step) -> CatsFit:
    """Fit one threshold per layer.

    Args:
        model: of the Llama family or a Gemma, in eval mode.
        text: calibration and held-out windows.
        sparsity: share of the neurons that a token leaves dead, between 0 and 1.
        step: called after every window of every pass.

    Raises:
        AdapterError: the sparsity makes no sense, or the model has no MLP gated by SiLU or GELU.
    """
    if not 0 < sparsity < 1:
        raise AdapterError(
            "nothing was fitted",
            f"the sparsity is {sparsity:g}, not between 0 and 1",
            "0.5 is usual.",
        )
    num_layers = len(gated_mlps(model))
    coarse = [Magnitudes() for _ in range(num_layers)]
    _observe(model, text.fitted, coarse, "finding where the thresholds lie", step)
    fine = [Refined(magnitudes, sparsity) for magnitudes in coarse]
    _observe(model, text.fitted, fine, "finding the thresholds", step)
    thresholds = [quantile.value for quantile in fine]
    before = perplexity(model, text.held_out, "measuring the base", step)
    dead = [_Dead() for _ in thresholds]

    def cut(layer: int, act: Tensor) -> Tensor:
        live = act.abs() > thresholds[layer]
        dead[layer].add(live)
        return act * live

    with watching(model, cut):
        after = perplexity(model, text.held_out, "measuring the fit", step)
    return CatsFit(thresholds, [d.share for d in dead], [d.shared for d in dead], before, after)


class _Dead:
    """Shares of dead neurons."""

    def __init__(self) -> None:
        self._single = self._pairs = 0.0
        self._windows = 0

    def add(self, live: Tensor) -> None:
        live = live.flatten(0, -2)
        self._single += float(1 - live.float().mean())
        self._pairs += float(1 - (live[1:] | live[:-1]).float().mean())
        self._windows += 1

    @property
    def share(self) -> float:
        return self._single / self._windows

    @property
    def shared(self) -> float:
        return self._pairs / self._windows


def gated_mlps(model: PreTrainedModel) -> list[Any]:
    """The MLPs, in order.

    Raises:
        AdapterError: they are none that CATS can threshold.
    """
    layers = getattr(getattr(model, "model", None), "layers", None) or []
    mlps = [getattr(layer, "mlp", None) for layer in layers]
    wanted = ("gate_proj", "up_proj", "down_proj", "act_fn")
    is_gated = all(hasattr(mlp, name) for mlp in mlps for name in wanted)
    config = model.config
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if not mlps or not is_gated or activation not in _ACTIVATIONS:
        raise AdapterError(
            "nothing was fitted",
            f"{type(model).__name__} has no layers with an MLP gated by SiLU or GELU",
            "Name a model of the Llama family or a Gemma.",
        )
    return mlps


@contextmanager
def watching(model: PreTrainedModel, watch: Watch) -> Iterator[None]:
    """Let `watch` see, and replace, act(gate) of every layer inside."""
    mlps = gated_mlps(model)
    originals = [mlp.act_fn for mlp in mlps]
    for layer, mlp in enumerate(mlps):
        mlp.act_fn = _Watched(mlp.act_fn, layer, watch)
    try:
        yield
    finally:
        for mlp, original in zip(mlps, originals, strict=True):
            mlp.act_fn = original


class _Watched(nn.Module):
    def __init__(self, act: nn.Module, layer: int, watch: Watch):
        super().__init__()
        self._act, self._layer, self._watch = act, layer, watch

    def forward(self, x: Tensor) -> Tensor:
        return self._watch(self._layer, self._act(x))


@torch.inference_mode()
def _observe(
    model: PreTrainedModel,
    windows: Sequence[Tensor],
    counters: Sequence[Magnitudes | Refined],
    stage: str,
    step: Step,
) -> None:
    def count(layer: int, act: Tensor) -> Tensor:
        counters[layer].add(act)
        return act

    with watching(model, count):
        for window in windows:
            model(window[None], use_cache=False, logits_to_keep=1)
            step(stage)
