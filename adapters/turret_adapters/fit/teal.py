"""Fit TEAL thresholds (Liu et al., 2024): per linear, with the greedy allocation of its section 4.

Inside a block, the linear whose inputs can be cut further at the least error of the block's output
is cut next (algorithm 1), until the block's weights are left out to the share asked for. Every step
leaves out as many weights, whichever linear it cuts. Thresholds are quantiles of |x|, where the
authors take those of the signed values and assume symmetry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from turret_adapters.errors import AdapterError
from turret_adapters.fit.cats import gated_mlps
from turret_adapters.fit.quantiles import Magnitudes
from turret_adapters.fit.text import Step, TextWindows, perplexity

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MLP = ("gate_proj", "up_proj", "down_proj")
LINEARS: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", *_MLP)
_JUDGED = 0.25  # the last share of a window's tokens, on which the error is taken


@dataclass(frozen=True, slots=True)
class TealFit:
    """What came out.

    Attributes:
        thresholds: per linear and layer.
        sparsity: per linear and layer, the share of zeros in the held-out text, all linears cut.
        weighted_sparsity: over all, weighted with the linears' parameters: what need not be read.
        perplexity_before: of the base on the held-out text.
        perplexity_even: with every linear cut to the same share, for comparison.
        perplexity_after: of the base with the thresholds.
    """

    thresholds: dict[str, list[float]]
    sparsity: dict[str, list[float]]
    weighted_sparsity: float
    perplexity_before: float
    perplexity_even: float
    perplexity_after: float

    def config(self, base_model: str) -> dict[str, Any]:
        """turret_adapter.json."""
        return {
            "kind": "teal",
            "version": 1,
            "base_model": base_model,
            "thresholds": self.thresholds,
        }


def num_steps(model: PreTrainedModel, text: TextWindows) -> int:
    """How often `fit_teal` calls `step`."""
    return len(text.fitted) + len(gated_mlps(model)) + 3 * len(text.held_out)


def fit_teal(
    model: PreTrainedModel,
    text: TextWindows,
    sparsity: float,
    step: Step,
    *,
    step_size: float = 0.05,
    greedy_windows: int = 1,
) -> TealFit:
    """Fit one threshold per layer and linear.

    Args:
        model: of the Llama family or a Gemma, in eval mode.
        text: calibration and held-out windows.
        sparsity: share of every block's weights that need not be read, between 0 and 1.
        step: called after every window of every pass, and after every block.
        step_size: how much further a linear of q's size is cut at a time.
        greedy_windows: calibration windows that the allocation looks at.

    Raises:
        AdapterError: the sparsity makes no sense, or the model is none that can be fitted.
    """
    if not 0 < sparsity < 1 or not 0 < step_size <= 1:
        raise AdapterError(
            "nothing was fitted",
            f"the sparsity is {sparsity:g} and the step {step_size:g}; both lie between 0 and 1",
            "A sparsity of 0.4 and steps of 0.05 are usual.",
        )
    gated_mlps(model)
    blocks = [_Block(layer) for layer in model.model.layers]
    with torch.inference_mode():
        _calibrate(model, blocks, text.fitted, greedy_windows, step)
        before = perplexity(model, text.held_out, "measuring the base", step)
        for block in blocks:
            block.cut_evenly(sparsity)
        even = _cut_perplexity(model, blocks, text.held_out, "measuring an even cut", step)
        for block in blocks:
            block.allocate(sparsity, step_size)
            step("sharing the sparsity out")
        after = _cut_perplexity(model, blocks, text.held_out, "measuring the fit", step)
    weights = [(block.sizes[name], block.cuts[name].zeros) for block in blocks for name in LINEARS]
    total = sum(size for size, _ in weights)
    return TealFit(
        {name: [block.cuts[name].threshold for block in blocks] for name in LINEARS},
        {name: [block.cuts[name].zeros for block in blocks] for name in LINEARS},
        sum(size * zeros for size, zeros in weights) / total,
        before,
        even,
        after,
    )


class _Cut:
    """Cuts what one linear reads, and counts the zeros."""

    def __init__(self) -> None:
        self.threshold = 0.0
        self._zeros = self._count = 0

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        live = args[0].abs() > self.threshold
        self._zeros += live.numel() - int(live.sum())
        self._count += live.numel()
        return (args[0] * live, *args[1:])

    @property
    def zeros(self) -> float:
        """Share of zeros so far."""
        return self._zeros / self._count if self._count else 0.0

    def forget(self) -> None:
        """Count anew."""
        self._zeros = self._count = 0


class _Block:
    """A decoder layer: its linears, the magnitudes of what they read, and calls to repeat."""

    def __init__(self, layer: Any):
        self.layer = layer
        self.linears: dict[str, nn.Module] = {
            name: getattr(layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp, name)
            for name in LINEARS
        }
        self.sizes = {n: sum(p.numel() for p in m.parameters()) for n, m in self.linears.items()}
        # q, k and v read the same, and so do gate and up.
        self.magnitudes = {name: Magnitudes() for name in ("q_proj", "o_proj", "up_proj")}
        self.magnitudes["down_proj"] = Magnitudes()
        self.cuts = {name: _Cut() for name in LINEARS}
        # What the block read [1, T, H], and how it called its attention.
        self.calls: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = []

    @contextmanager
    def cutting(self) -> Iterator[None]:
        """The linears read what their cuts leave; zeros are counted from here on."""
        for cut in self.cuts.values():
            cut.forget()
        handles = [
            linear.register_forward_pre_hook(self.cuts[name])
            for name, linear in self.linears.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def cut_evenly(self, share: float) -> None:
        """Cut every linear to the same share."""
        for name in LINEARS:
            self._set(name, share)

    def allocate(self, target: float, step_size: float) -> None:
        """Cut the linears further and further, each time the one that costs least."""
        self.cut_evenly(0.0)
        between = self._between()
        wanted = self._outputs(between)
        shares = dict.fromkeys(LINEARS, 0.0)
        total, unit = sum(self.sizes.values()), step_size * self.sizes["q_proj"]
        reached = 0.0
        with self.cutting():
            while reached < target:
                # The last step is as short as the target asks for.
                area = min(unit, (target - reached) * total)
                tried: dict[str, tuple[float, list[Tensor]]] = {}
                for name in LINEARS:
                    share = shares[name] + area / self.sizes[name]
                    if share < 1:
                        self._set(name, share)
                        # What is cut behind the attention leaves it as it is.
                        stream = between if name in _MLP else self._between()
                        tried[name] = _error(self._outputs(stream), wanted), stream
                        self._set(name, shares[name])
                if not tried:
                    break
                best = min(tried, key=lambda name: tried[name][0])
                between = tried[best][1]
                shares[best] += area / self.sizes[best]
                self._set(best, shares[best])
                reached += area / total
        self.calls.clear()

    def _set(self, name: str, share: float) -> None:
        source = {"k_proj": "q_proj", "v_proj": "q_proj", "gate_proj": "up_proj"}.get(name, name)
        self.cuts[name].threshold = self.magnitudes[source].quantile(share)

    def _between(self) -> list[Tensor]:
        """The residual stream between attention and MLP [1, T, H], for every call."""
        return [x + self.layer.self_attn(*args, **kwargs)[0] for x, args, kwargs in self.calls]

    def _outputs(self, between: list[Tensor]) -> list[Tensor]:
        """What the block gives for the tokens that are judged, the last ones of every call."""
        parts = [x[:, -max(1, int(_JUDGED * x.shape[1])) :] for x in between]
        return [x + self.layer.mlp(self.layer.post_attention_layernorm(x)) for x in parts]


def _error(outputs: list[Tensor], wanted: list[Tensor]) -> float:
    return sum(float((out - want).norm()) for out, want in zip(outputs, wanted, strict=True))


def _calibrate(
    model: PreTrainedModel,
    blocks: Sequence[_Block],
    windows: Sequence[Tensor],
    num_kept: int,
    step: Step,
) -> None:
    """Count what the linears of the dense model read; keep the blocks' last calls."""
    handles = []
    for block in blocks:
        for name, magnitudes in block.magnitudes.items():
            handles.append(block.linears[name].register_forward_pre_hook(_counter(magnitudes)))
    for i, window in enumerate(windows):
        if i == max(0, len(windows) - num_kept):
            for block in blocks:
                handles += _record(block)
        model(window[None], use_cache=False, logits_to_keep=1)
        step("finding the distribution of every input")
    for handle in handles:
        handle.remove()


def _cut_perplexity(
    model: PreTrainedModel,
    blocks: Sequence[_Block],
    windows: Sequence[Tensor],
    stage: str,
    step: Step,
) -> float:
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(block.cutting())
        return perplexity(model, windows, stage, step)


def _counter(magnitudes: Magnitudes) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda module, args: magnitudes.add(args[0])


def _record(block: _Block) -> list[RemovableHandle]:
    """Let a block remember what it reads and how it calls its attention."""
    stream: list[Tensor] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream.append(args[0] if args else kwargs["hidden_states"])

    def attend(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        block.calls.append((stream.pop(), args, kwargs))

    return [
        block.layer.register_forward_pre_hook(enter, with_kwargs=True),
        block.layer.self_attn.register_forward_pre_hook(attend, with_kwargs=True),
    ]
