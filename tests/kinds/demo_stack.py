"""What stacks of the shipped adapters must compute: PEFT's LoRA, and hooks on transformers.

Nothing here goes through our readers: the files are opened as any script would open them.

An activation that rounding moves across a threshold changes log-probabilities by some hundredths.
It happens to one in some millions, so prompts are short and chosen: `Stack.margin` tells how close
any activation of theirs comes, and rounding moves them by less than 1e-6 of the threshold.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from tests.kinds.cases.cats import Thresholded
from tests.kinds.cases.lofit import hooked
from torch import Tensor
from transformers import AutoModelForCausalLM

import turret_adapters

DEMO = Path(turret_adapters.__file__).parent / "demo"
LORA, LOFIT, CATS = "sql", "triage", "cats-50"
NEW_TOKENS = 4
MIN_MARGIN = 1.5e-6


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, and the weights of the shipped adapters that answer it."""

    prompt: str
    weights: dict[str, float]

    def __str__(self) -> str:
        return "+".join(f"{name}:{weight:g}" for name, weight in self.weights.items()) or "base"


ASKED = [
    Asked("My bank shows two payments", {LORA: 1.0, LOFIT: 1.0, CATS: 1.0}),
    Asked("In the morning the", {LORA: 0.6, LOFIT: -0.5, CATS: 1.0}),
    Asked("The sea was", {LORA: 1.0, CATS: 1.0}),
    Asked("A red boat", {LOFIT: 1.0, CATS: 1.0}),
    Asked("Water boils at", {CATS: 1.0}),
    Asked("My bank shows two payments", {LORA: 1.0, LOFIT: 1.0}),
    Asked("My bank shows two payments", {}),
]


class Stack:
    """The demo model in float32 with adapters.

    Args:
        model: folder of the demo model.
        weights: by name, of any of LORA, LOFIT and CATS.
    """

    def __init__(self, model: Path, weights: dict[str, float]) -> None:
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        if LORA in weights:
            PeftModel.from_pretrained(base, str(DEMO / LORA))  # changes `base` itself
            for module in base.modules():
                if isinstance(module, LoraLayer):
                    module.scale_layer(weights[LORA])
        self._cuts: list[_Cut] = []
        if CATS in weights:
            config = json.loads((DEMO / CATS / "turret_adapter.json").read_text())
            for layer, threshold in zip(base.model.layers, config["thresholds"], strict=True):
                layer.mlp.act_fn = _Cut(layer.mlp.act_fn, threshold)
                self._cuts.append(layer.mlp.act_fn)
        heads = {}
        if LOFIT in weights:
            tensors = load_file(DEMO / LOFIT / "adapter.safetensors")
            places = zip(tensors["layers"].tolist(), tensors["heads"].tolist(), strict=True)
            heads = dict(zip(places, weights[LOFIT] * tensors["v"].float(), strict=True))
        self.logits = hooked(base, heads)

    def greedy(self, prompt: list[int]) -> tuple[list[int], Tensor]:
        """Prompt and answer, and the log-probabilities [T - 1, vocab] of what follows each token.

        Raises:
            AssertionError: an activation lies so close to a threshold that nothing can be compared.
        """
        tokens = list(prompt)
        for _ in range(NEW_TOKENS):
            tokens.append(int(self.logits(torch.tensor(tokens))[-1].argmax()))
        logprobs = self.logits(torch.tensor(tokens[:-1])).log_softmax(-1)
        assert self.margin > MIN_MARGIN, f"choose another prompt: {self.margin:.1e}"
        return tokens, logprobs

    @property
    def margin(self) -> float:
        """The least |x / threshold - 1| of all activations so far."""
        return min((cut.margin for cut in self._cuts), default=math.inf)


class _Cut(Thresholded):
    margin = math.inf

    def forward(self, x: Tensor) -> Tensor:
        distance = (self.act(x).abs() / self.threshold - 1).abs().min()
        self.margin = min(self.margin, float(distance))
        return super().forward(x)
