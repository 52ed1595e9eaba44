"""What a demo task is."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "test"]


def words(text: str) -> list[str]:
    """Split a list written as "red, dark blue"; lines may break anywhere."""
    return [" ".join(word.split()) for word in text.split(",")]


@dataclass(frozen=True, slots=True)
class Example:
    """One user message and the answer wanted."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task that an adapter learns and the base model is asked to do from instructions."""

    name: str
    summary: str
    """One line for the model card."""
    instruction: str
    """What the base model is told; the adapter needs no instruction."""
    max_new_tokens: int
    make: Callable[[random.Random, Split], Example]
    """Draws an example; "test" draws from names and values that "train" never uses."""
    score: Callable[[str, Example], bool]
    """Whether a model's whole output is right."""

    def examples(self, split: Split, count: int, seed: int) -> list[Example]:
        """Return `count` different examples; equal arguments give equal lists."""
        rng = random.Random(f"{self.name}/{split}/{seed}")
        found: dict[str, Example] = {}
        while len(found) < count:
            example = self.make(rng, split)
            found.setdefault(example.prompt, example)
        return list(found.values())

    def instructed(self, prompt: str) -> str:
        """Return the prompt as the base model gets it: instruction, a worked example, the input."""
        shown = self.examples("train", 1, seed=0)[0]
        return (
            f"{self.instruction}\n\nInput:\n{shown.prompt}\nOutput:\n{shown.answer}\n\n"
            f"Input:\n{prompt}\nOutput:"
        )
