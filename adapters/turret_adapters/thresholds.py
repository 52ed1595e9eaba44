"""Lists of activation thresholds as adapters' configs hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from turret_adapters.errors import AdapterError, quote

_MAX = 3.4e38  # of float32


def checked_thresholds(
    value: Any, name: str, num_layers: int, malformed: Callable[[str], AdapterError]
) -> list[float]:
    """One number per layer; 0 and below mean that the layer keeps everything.

    Args:
        value: what the config holds.
        name: how messages call it.
        num_layers: of the base.
        malformed: makes the error.

    Raises:
        AdapterError: no such list, or one for another number of layers.
    """
    if not isinstance(value, list):
        raise malformed(f"{name} is {quote(value)}, not a list of numbers")
    if len(value) != num_layers:
        raise malformed(f"{name} is for {len(value)} layers, and the base has {num_layers}")
    for layer, number in enumerate(value):
        if type(number) not in (int, float) or not abs(number) <= _MAX:
            raise malformed(f"{name} of layer {layer} is {quote(number)}, not a finite number")
    return [float(number) for number in value]
