"""References for steering: transformers' model with hooks on its modules."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tests.kinds.case import Reference
from torch import Tensor, nn
from transformers import PreTrainedModel

Change = Callable[[Tensor], Tensor]


def change_output(module: nn.Module, change: Change) -> None:
    """Replace what a module returns; of a tuple, its first part."""

    def hook(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> object:
        if isinstance(output, tuple):
            return change(output[0]), *output[1:]
        return change(output)

    module.register_forward_hook(hook)


def change_input(module: nn.Module, change: Change) -> None:
    """Replace what a module of one argument reads."""
    module.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]),))


def reference(model: PreTrainedModel) -> Reference:
    """The model's logits, hooks included."""

    @torch.no_grad()
    def logits(tokens: Tensor) -> Tensor:
        return model(tokens[None]).logits[0].float()

    return logits
