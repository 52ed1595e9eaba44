"""What a test of a kind brings: an adapter on disk, and its reference outside our code."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from turret_adapters.spec import ModelShape

# Token ids [T] -> logits [T, vocab], float32.
Reference = Callable[[Tensor], Tensor]
# Writes the adapter into a folder, given a fresh base that it may change; returns the reference.
Make = Callable[[Path, PreTrainedModel], Reference]


def fewer_layers(shape: ModelShape) -> ModelShape:
    """A base that an adapter of every layer does not fit."""
    return replace(shape, num_layers=1)


def spread(base: PreTrainedModel) -> float:
    """How large a base's weights are, beside the 0.2 that the tests' tiny bases are drawn with.

    Adapters far out of proportion make a real model chaotic, and rounding all that is compared.
    """
    return float(base.model.layers[0].self_attn.q_proj.weight.detach().std()) / 0.2


@dataclass(frozen=True, slots=True)
class Case:
    """One adapter of one kind.

    Attributes:
        name: unique; begins with the kind's name.
        kind: the name of the kind that must recognise it.
        make: see `Make`.
        bases: the bases (see conftest) it is tried on.
        may_lack: tensors (parts of their names) that may be missing without an error.
        weighted: the request's weight moves the adapter's change linearly *inside one linear*,
            which most kinds do; False for kinds that take no weight but 0 and 1.
        on_real_model: it is also tried on the demo model (tied head, no biases).
        stores_tensors: it is a safetensors file, so the contract damages its tensors.
        misfit: another base, which it must refuse; an adapter of the embedding alone fits bases of
            any depth.
    """

    name: str
    kind: str
    make: Make
    bases: tuple[str, ...] = ("llama",)
    may_lack: tuple[str, ...] = field(default=())
    weighted: bool = True
    on_real_model: bool = True
    stores_tensors: bool = True
    misfit: Callable[[ModelShape], ModelShape] = fewer_layers

    def __str__(self) -> str:
        return self.name


def peft_case(
    name: str,
    kind: str,
    config: Callable[[], PeftConfig],
    *,
    std: float = 0.1,
    change: Callable[[PreTrainedModel], None] | None = None,
    edit_config: dict[str, Any] | None = None,
    call: dict[str, Any] | None = None,
    **fields: Any,
) -> Case:
    """An adapter that PEFT makes, saves, loads again and computes.

    Args:
        name: of the case.
        kind: of the adapter.
        config: PEFT's configuration, made anew for every use.
        std: noise that is added to every trainable parameter, so that it does something; for
            weights of deviation 0.2, and in proportion.
        change: done to the PEFT model instead of the noise.
        edit_config: fields to set in adapter_config.json after saving.
        call: further arguments of the reference's forward pass.
        fields: of the case.
    """

    def make(folder: Path, base: PreTrainedModel) -> Reference:
        noise = std * spread(base)
        state = {key: value.clone() for key, value in base.state_dict().items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(3)
            model = get_peft_model(base, config())
            if change is not None:
                change(model)
            else:
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.data += torch.randn_like(parameter) * noise
            model.save_pretrained(str(folder))
            if edit_config:
                path = folder / "adapter_config.json"
                path.write_text(json.dumps(json.loads(path.read_text()) | edit_config))
            # Loaded anew: what is in the folder counts.
            fresh = type(base)(base.config)
            fresh.load_state_dict(state)
            loaded = PeftModel.from_pretrained(fresh, str(folder)).eval()

        @torch.no_grad()
        def logits(tokens: Tensor) -> Tensor:
            found = loaded(tokens[None], **call or {}).logits[0]
            return found[-len(tokens) :].float()  # soft prompts put their own rows before

        return logits

    return Case(name, kind, make, **fields)
