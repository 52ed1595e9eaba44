"""Auxiliary models of a server: where they lie, and whether their tokens are the main model's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from turret_adapters.catalog import name_problem
from turret_server.errors import StartupError
from turret_server.pipeline.auxiliary import AuxiliaryTokens, id_map
from turret_server.pipeline.tokenizer import Tokenizer
from turret_server.sources.model import resolve_model

ID_MAP = "turret_id_map.json"


@dataclass(frozen=True, slots=True)
class AuxiliaryModel:
    """A model that takes part in fusions.

    Attributes:
        folder: of its files.
        tokens: make its prompts.
    """

    folder: Path
    tokens: AuxiliaryTokens


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
        StartupError: a name cannot be used, a model is not there, or its vocabulary is another one
            without an id map.
    """
    found = {}
    for name, source in models.items():
        if problem := name_problem(name) or ("it is taken" if name in taken else None):
            raise StartupError(
                f"{name!r} cannot name an auxiliary model", problem, "Choose another name."
            )
        folder = resolve_model(source, progress=progress)
        tokenizer, ids = Tokenizer.load(folder), None
        if tokenizer.vocabulary_digest != main.vocabulary_digest:
            try:
                ids = id_map(main, tokenizer, _pairs(folder / ID_MAP))
            except ValueError as error:
                raise StartupError(
                    f"the auxiliary model {name!r} cannot be fused",
                    f"its vocabulary is not the main model's: {error}",
                    f"Use models of one family, or put a {ID_MAP} beside it: docs/fusion.md.",
                ) from error
        found[name] = AuxiliaryModel(folder, AuxiliaryTokens(tokenizer, ids))
    return found


def _pairs(path: Path) -> dict[str, str | None] | None:
    """What the file says of tokens and their counterparts; None without the file."""
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str | None])
    except (OSError, msgspec.MsgspecError) as error:
        raise ValueError(f"{ID_MAP} cannot be read ({error})") from error
