"""What a demo task is."""

import hashlib
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

    @staticmethod
    def digest(examples: list[Example]) -> str:
        """Return the SHA-256 of examples: it ties a published score to what was asked."""
        text = "\0".join(part for e in examples for part in (e.prompt, e.answer))
        return hashlib.sha256(text.encode()).hexdigest()

    def conversation(self, prompt: str, *, shots: int) -> list[dict[str, str]]:
        """Return the messages that ask for `prompt`.

        With `shots`, the instruction and that many worked examples, as turns of the conversation,
        come first: the form in which a chat model makes most of them.
        """
        asked = [{"role": "user", "content": prompt}]
        if not shots:
            return asked
        turns = [{"role": "system", "content": self.instruction}]
        for shown in self.examples("train", shots, seed=0):
            turns.append({"role": "user", "content": shown.prompt})
            turns.append({"role": "assistant", "content": shown.answer})
        return turns + asked
