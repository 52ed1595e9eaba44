"""PEFT's adapter_config.json: typed access, and nothing is skipped unread."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from turret_adapters.errors import AdapterMalformed, AdapterUnsupported, listing, quote
from turret_adapters.peft.patterns import Budget

if TYPE_CHECKING:
    from turret_adapters.files import AdapterFiles

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

# Of every PEFT config: where the adapter comes from.
PROVENANCE = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "peft_type",
        "peft_version",
        "revision",
        "task_type",
    }
)


class PeftConfig:
    """The fields of one adapter_config.json.

    Attributes:
        budget: for the patterns in it.

    Args:
        files: the adapter's folder.

    Raises:
        AdapterError: the file is missing or is no JSON object.
    """

    def __init__(self, files: AdapterFiles):
        self._fields: dict[str, Any] = files.json(CONFIG_NAME)
        self._what = f"adapter {quote(str(files.path))} was not loaded"
        self.budget = Budget()

    def check_fields(self, known: frozenset[str], refused: Mapping[str, str]) -> None:
        """Refuse what would change the meaning of the adapter, by name.

        Args:
            known: fields that the kind reads, or that may have any value.
            refused: why, for fields that must be off (null, false, empty).

        Raises:
            AdapterUnsupported: a refused field is on, or an unknown one. An unknown field that is
                off asks for nothing: newer versions of PEFT write them for every adapter.
        """
        for name, why in refused.items():
            if self._fields.get(name):
                raise self.unsupported(f"{name} is set: {why}")
        unknown = [
            name
            for name, value in self._fields.items()
            if name not in known and name not in refused and name not in PROVENANCE and value
        ]
        if unknown:
            raise self.unsupported(
                f"adapter_config.json sets {listing(unknown)}, which this version does not know "
                "and which may change what the adapter does"
            )

    def unsupported(self, why: str, fix: str = "") -> AdapterUnsupported:
        """The error for a setting that cannot be served."""
        fix = fix or "Train or export the adapter without it."
        return AdapterUnsupported(self._what, why, fix)

    def malformed(self, why: str, fix: str = "") -> AdapterMalformed:
        """The error for a setting that makes no sense."""
        return AdapterMalformed(self._what, why, fix or f"Correct {CONFIG_NAME}.")

    def get(self, name: str) -> Any:
        """The raw value, None where the field is missing."""
        return self._fields.get(name)

    @property
    def base_model(self) -> str | None:
        """The base model's name as the training saw it."""
        value = self._fields.get("base_model_name_or_path")
        return value[:500] if isinstance(value, str) and value else None

    def integer(self, name: str, default: int, minimum: int) -> int:
        """An integer of at least `minimum`."""
        return self.checked_integer(name, self._fields.get(name, default), minimum)

    def checked_integer(self, name: str, value: Any, minimum: int) -> int:
        """`value` if it is an integer of at least `minimum`; `name` is for the message."""
        if type(value) is not int or value < minimum:
            raise self.malformed(f"{name} is {quote(value)}, not an integer of at least {minimum}")
        return value

    def number(self, name: str, default: float) -> float:
        """A finite number."""
        return self.checked_number(name, self._fields.get(name, default))

    def checked_number(self, name: str, value: Any) -> float:
        """`value` if it is a finite number; `name` is for the message."""
        try:
            number = float(value) if type(value) in (int, float) else math.nan
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.malformed(f"{name} is {quote(value)}, not a finite number")
        return number

    def flag(self, name: str) -> bool:
        """True, or False where the field is false, null or missing."""
        value = self._fields.get(name)
        if value is not None and type(value) is not bool:
            raise self.malformed(f"{name} is {quote(value)}, neither true nor false")
        return bool(value)

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        """One of `allowed`."""
        value = self._fields.get(name)
        value = default if value is None else value
        if value not in allowed:
            raise self.malformed(f"{name} is {quote(value)}, none of {listing(list(allowed))}")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """An object; empty where the field is null or missing."""
        value = self._fields.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.malformed(f"{name} is {quote(value)}, not an object")
        return value or {}

    def strings(self, name: str) -> str | list[str] | None:
        """A string, a list of strings, or None."""
        value = self._fields.get(name)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
        if value is None or isinstance(value, str):
            return value
        raise self.malformed(f"{name} is {quote(value)}, neither a string nor a list of strings")
