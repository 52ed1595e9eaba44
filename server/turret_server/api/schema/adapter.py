"""An adapter as bodies name it, with its weight."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from turret_adapters.weight_table import MAX_KEYS
from turret_server.api.schema.base import ClosedPart


def _weight(value: Any) -> Any:
    table = value if isinstance(value, dict) else {"": value}
    if len(table) > MAX_KEYS or any(type(w) not in (int, float) for w in table.values()):
        raise ValueError(f"a weight is a number, or an object of at most {MAX_KEYS} numbers")
    return value


class AdapterChoice(ClosedPart):
    """One adapter to stack, with its weight."""

    name: str = Field(min_length=1, max_length=128, description="Name of a loaded adapter.")
    weight: Annotated[
        Any,
        BeforeValidator(_weight),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "number", "minimum": -16, "maximum": 16},
                    {"type": "object", "additionalProperties": {"type": "number"}},
                ]
            }
        ),
    ] = Field(
        1.0,
        description="Its weight: a number, or a table {place: number} of modules and layers, such "
        'as {"q_proj": 0.5, "layers.0-11.mlp": 0.2, "*": 0}. The most specific place holds; what '
        "none names keeps 1.",
    )
