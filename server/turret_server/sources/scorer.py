"""Scorers of the configuration: a model, or a table, on the command line as JSON.

[scorers]
cappy = "./cappy-large"
correct = {model = "./judge", label = "correct", max_length = 1024}
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated

import msgspec

from turret_adapters.catalog import name_problem
from turret_server.errors import StartupError
from turret_server.scorer.messages import ScorerSettings
from turret_server.sources.model import resolve_model


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    label: str | int = ""
    max_length: Annotated[int, msgspec.Meta(ge=8, le=1 << 20)] = 4096


def find_scorers(
    scorers: Mapping[str, str], taken: Collection[str], *, progress: bool
) -> dict[str, ScorerSettings]:
    """Find scorers.

    Args:
        scorers: by name: a folder, a Hugging Face id, or a table.
        taken: names that others have.
        progress: draw a progress bar where something is fetched.

    Returns:
        What their processes are told of model, label and length.

    Raises:
        StartupError: a name cannot be used, a table is wrong, or a model is not there.
    """
    found = {}
    for name, text in scorers.items():
        problem = name_problem(name) or ("it is taken" if name in taken else None)
        table = _Table(text)
        if text.startswith("{"):
            try:
                table = msgspec.json.decode(text, type=_Table)
            except msgspec.MsgspecError as error:
                problem = problem or str(error)
        if problem:
            raise StartupError(
                f"the scorer {name!r} cannot be served",
                problem,
                "Correct it; docs/reranking.md shows both forms.",
            )
        folder = resolve_model(table.model, progress=progress)
        found[name] = ScorerSettings(
            model=str(folder), label=str(table.label), max_length=table.max_length
        )
    return found
