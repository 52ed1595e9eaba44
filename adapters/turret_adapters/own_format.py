"""Our own formats: turret_adapter.json says the kind, adapter.safetensors holds the tensors."""

from __future__ import annotations

import math
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from turret_adapters.errors import AdapterMalformed, AdapterUnsupported, listing, quote

if TYPE_CHECKING:
    from turret_adapters.files import AdapterFiles

CONFIG_NAME = "turret_adapter.json"
WEIGHTS_NAME = "adapter.safetensors"
VERSION = 1


class OwnConfig:
    """The fields of one turret_adapter.json.

    Args:
        files: the adapter's folder.

    Raises:
        AdapterError: the file is missing, is no JSON object, or has a version that is not known.
    """

    def __init__(self, files: AdapterFiles):
        self._fields: dict[str, Any] = files.json(CONFIG_NAME)
        self._what = f"adapter {quote(str(files.path))} was not loaded"
        version = self._fields.get("version")
        if type(version) is not int:
            raise self.malformed(f"version is {quote(version)}, not an integer")
        if version != VERSION:
            raise self.unsupported(
                f"its format has version {version}; this server reads version {VERSION}",
                "Update the server, or write the adapter with a version that fits it.",
            )

    def check_fields(self, known: frozenset[str] = frozenset()) -> None:
        """Refuse fields that the kind does not know, besides kind, version and base_model.

        Raises:
            AdapterUnsupported: naming them.
        """
        common = {"kind", "version", "base_model"}
        unknown = [name for name in self._fields if name not in known and name not in common]
        if unknown:
            raise self.unsupported(
                f"{CONFIG_NAME} sets {listing(unknown)}, which this version does not know and "
                "which may change what the adapter does"
            )

    def unsupported(self, why: str, fix: str = "") -> AdapterUnsupported:
        """The error for what cannot be served."""
        return AdapterUnsupported(self._what, why, fix or "Write the adapter without it.")

    def malformed(self, why: str, fix: str = "") -> AdapterMalformed:
        """The error for what makes no sense."""
        return AdapterMalformed(self._what, why, fix or f"Correct {CONFIG_NAME}.")

    def get(self, name: str) -> Any:
        """The raw value, None where the field is missing."""
        return self._fields.get(name)

    def number(self, name: str) -> float:
        """A finite number, which must be there."""
        value: Any = self._fields.get(name)
        try:
            number = float(value) if type(value) in (int, float) else math.nan
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.malformed(f"{name} is {quote(value)}, not a finite number")
        return number

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        """One of `allowed`, which must be there."""
        value: Any = self._fields.get(name)
        if value not in allowed:
            raise self.malformed(f"{name} is {quote(value)}, none of {listing(list(allowed))}")
        return value

    @property
    def base_model(self) -> str | None:
        """The base model's name as the fitting saw it."""
        value = self._fields.get("base_model")
        return value[:500] if isinstance(value, str) and value else None

    def base_notes(self, served: str) -> list[str]:
        """What to say where the base that is served has another name."""
        trained = self.base_model
        if not trained or not served or _last(trained) == _last(served):
            return []
        return [f"fitted on {quote(trained)}, served on {quote(served)}"]


def is_own(files: AdapterFiles, kind: str) -> bool:
    """Does the folder's turret_adapter.json declare this kind?"""
    return files.has(CONFIG_NAME) and files.json(CONFIG_NAME).get("kind") == kind


def _last(name: str) -> str:
    return PurePath(name).name.lower()
