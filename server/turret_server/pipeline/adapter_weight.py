"""An adapter's weight, from what a request writes to what the engine takes."""

from __future__ import annotations

import math

from turret_adapters import weight_table
from turret_adapters.catalog import AdapterRecord
from turret_adapters.errors import quote
from turret_server.errors import BadRequest, Unprocessable

MAX_WEIGHT = 16.0  # absolute; beyond it activations overflow long before they mean anything

Weight = float | dict[str, float]  # as requests write it; of a table, see weight_table.py


def spell_out(
    weight: Weight, record: AdapterRecord, num_layers: int, param: str
) -> weight_table.Weight:
    """Check a weight; a table is spelt out for every place that the adapter touches.

    Args:
        weight: as the request has it.
        record: of the adapter.
        num_layers: of the model that it acts on.
        param: where the request names the adapter.

    Raises:
        BadRequest: it is out of range.
        Unprocessable: the adapter cannot take it.
    """
    where = param if param == "model" else f"{param}.weight"
    if isinstance(weight, dict):
        for number in weight.values():
            _check(number, record.name, where)
        try:
            spelt = weight_table.expand(weight, record.targets, num_layers)
        except weight_table.BadWeightTable as error:
            raise Unprocessable(
                f"the weights of adapter {record.name!r} cannot be applied",
                error.why,
                error.fix,
                param=where,
            ) from None
    else:
        _check(weight, record.name, where)
        spelt = float(weight)
    if "Threshold" in record.primitives and spelt not in (0, 1):
        raise Unprocessable(
            f"adapter {record.name!r} cannot have the weight {quote(weight)}",
            f"it is {record.kind}: below its thresholds activations are left out, and half of that "
            "has no meaning",
            "Give it the weight 1, or 0 to switch it off; fit another one for another sparsity.",
            param=where,
        )
    if record.num_virtual_tokens and spelt not in (0, 1):
        raise Unprocessable(
            f"adapter {record.name!r} cannot have the weight {quote(weight)}",
            f"it puts {record.num_virtual_tokens} virtual tokens before the prompt: they are there "
            "or not",
            "Give it the weight 1, or 0 to leave it out.",
            param=where,
        )
    return spelt


def _check(weight: float, name: str, param: str) -> None:
    if not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
        raise BadRequest(
            f"weight {weight!r} of adapter {name!r} is out of range",
            f"weights lie between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}",
            param=param,
        )
