"""Auxiliary models of a server: where they lie, and whether their tokens are the main model's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from turret_adapters.catalog import name_problem
from turret_server.errors import StartupError
from turret_server.pipeline.tokenizer import Tokenizer
from turret_server.sources.model import resolve_model


@dataclass(frozen=True, slots=True)
class AuxiliaryModel:
    """A model that takes part in fusions.

    Attributes:
        folder: of its files.
        tokenizer: of its own, for its chat template; its ids mean what the main model's mean.
    """

    folder: Path
    tokenizer: Tokenizer


def find_auxiliaries(
    models: Mapping[str, str], main: Tokenizer, taken: Collection[str], *, progress: bool
) -> dict[str, AuxiliaryModel]:
    """Find auxiliary models.

    Args:
        models: by name: a folder, a Hugging Face id, or "demo".
        main: the tokenizer of the model that is served.
        taken: names that others have.
        progress: draw a progress bar where something is fetched.

    Raises:
        StartupError: a name cannot be used, a model is not there, or it has another vocabulary.
    """
    found = {}
    for name, source in models.items():
        if problem := name_problem(name) or ("it is taken" if name in taken else None):
            raise StartupError(
                f"{name!r} cannot name an auxiliary model", problem, "Choose another name."
            )
        folder = resolve_model(source, progress=progress)
        tokenizer = Tokenizer.load(folder)
        if tokenizer.vocabulary_digest != main.vocabulary_digest:
            raise StartupError(
                f"the auxiliary model {name!r} cannot be fused",
                f"its vocabulary has the digest {tokenizer.vocabulary_digest[:12]}, that of the "
                f"main model {main.vocabulary_digest[:12]}: token ids do not mean the same",
                "Use models of one family.",
            )
        found[name] = AuxiliaryModel(folder, tokenizer)
    return found
