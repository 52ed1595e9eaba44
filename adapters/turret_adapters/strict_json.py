"""JSON from strangers: sized, UTF-8, no duplicate keys, no NaN, bounded depth."""

from __future__ import annotations

import json
from typing import Any

from turret_adapters.errors import AdapterMalformed, quote

_FIX = "Save the adapter again with the tool that made it."


def parse_object(data: bytes, what: str, *, max_depth: int) -> dict[str, Any]:
    """Parse one JSON object.

    Args:
        data: the whole text; the caller has bounded its size.
        what: how messages call it, e.g. "'adapter_config.json'".
        max_depth: deepest nesting of objects and arrays.

    Raises:
        AdapterMalformed: not UTF-8, not JSON, not an object, or beyond the rules above.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
        _check(value, max_depth)
    except RecursionError:
        raise AdapterMalformed(
            f"{what} was refused", f"it nests deeper than {max_depth} levels", _FIX
        ) from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        reason = f"it is not valid JSON ({quote(str(error))})"
        raise AdapterMalformed(f"{what} was refused", reason, _FIX) from None
    if not isinstance(value, dict):
        raise AdapterMalformed(
            f"{what} was refused", f"it holds a {type(value).__name__}, not an object", _FIX
        )
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"duplicate key {quote(twice)}")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _check(value: Any, max_depth: int) -> None:
    """Bound the depth, and refuse lone surrogates: no message could ever print them."""
    level = [value]
    for _ in range(max_depth + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                for key in item:
                    key.encode("utf-8")
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
            elif isinstance(item, str):
                item.encode("utf-8")
        if not inner:
            return
        level = inner
    raise RecursionError
