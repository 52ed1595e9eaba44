"""How a model wants to be sampled where a request does not say: its generation_config.json."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path

from turret_server.errors import StartupError

# Lowest and highest value that a request may ask for.
_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (1e-9, 1.0),
    "top_k": (0, math.inf),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-9, 10.0),
}


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Sampling of a request that names none; without a model's word, OpenAI's defaults."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def from_folder(cls, folder: Path) -> GenerationDefaults:
        """Read a model's own, as vLLM does; what the file does not name keeps OpenAI's default.

        Raises:
            StartupError: the file is damaged, or a value is out of range.
        """
        path = folder / "generation_config.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError) as error:
            raise StartupError(
                f"{str(path)!r} cannot be read", str(error), "Mend it, or remove it."
            ) from error
        found = {f.name: values[f.name] for f in fields(cls) if values.get(f.name) is not None}
        for name, value in found.items():
            low, high = _RANGES[name]
            if type(value) not in (int, float) or not low <= value <= high:
                raise StartupError(
                    f"{name} is {value!r} in {str(path)!r}",
                    f"it lies between {low:g} and {high:g}",
                    "Correct it, or remove it from the file.",
                )
        return cls(**found)
