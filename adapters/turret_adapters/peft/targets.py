"""PEFT's rules for which modules an adapter acts on, and with which rank and alpha.

Follows `check_target_module_exists` and `get_pattern_key` of PEFT 0.21.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from turret_adapters.errors import listing
from turret_adapters.peft.config import PeftConfig
from turret_adapters.peft.patterns import Pattern, PatternError
from turret_adapters.spec import Module, Site

_ALL_LINEAR = "all-linear"
# One key per module of a large model stays well below.
_MAX_TABLE = 4096
# Literal names; "." is the only metacharacter and cannot make matching slow.
_PLAIN = re.compile(r"\^?[\w.-]*", re.ASCII)
_FIRST_NUMBER = re.compile(r".*?\.[^.]*\.(?P<index>\d+)\.")


class Targets:
    """Which modules the config names.

    Args:
        config: reads target_modules, exclude_modules, layers_to_transform, layers_pattern.

    Raises:
        AdapterMalformed: a field has the wrong type or holds an invalid pattern.
    """

    def __init__(self, config: PeftConfig):
        self._config = config
        self.names = config.strings("target_modules")
        self._target = self._matcher("target_modules", self.names)
        self._excluded = self._matcher("exclude_modules", config.strings("exclude_modules"))
        self._layers = self._layer_numbers()
        patterns = config.strings("layers_pattern") or []
        patterns = [patterns] if isinstance(patterns, str) else patterns
        if len(patterns) > _MAX_TABLE:
            raise config.malformed(
                f"layers_pattern has {len(patterns)} entries, more than {_MAX_TABLE}"
            )
        for pattern in patterns:
            if not _PLAIN.fullmatch(pattern):
                raise config.unsupported(
                    f"layers_pattern {pattern!r} is no plain name", "Name it, for example 'layers'."
                )
        # Compiled once: `re` remembers 512 patterns, and would begin anew at every path.
        self._layer_patterns = [
            re.compile(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.") for pattern in patterns
        ]
        if isinstance(self.names, str) and (self._layers is not None or self._layer_patterns):
            raise config.malformed(
                "layers_to_transform and layers_pattern need target_modules to be a list"
            )

    def __str__(self) -> str:
        if self.names is None:
            return "target_modules null"
        names = self.names if isinstance(self.names, str) else listing(sorted(self.names))
        return f"target_modules {names}"

    def matches(self, path: str, site: Site) -> bool | None:
        """Does the config name this module? None where it leaves the choice to PEFT's defaults."""
        if self._excluded is not None and self._excluded(path):
            return False
        if self.names is None:
            return None
        if isinstance(self.names, str) and self.names.lower() == _ALL_LINEAR:
            return site.module not in (Module.EMBED, Module.HEAD)
        if self._target is None or not self._target(path):
            return False
        exact = isinstance(self.names, str) or path in self.names
        return True if exact else self._is_in_layers(path)

    def _is_in_layers(self, path: str) -> bool:
        if not self._layers:
            return True
        if not self._layer_patterns:
            match = _FIRST_NUMBER.match(path)
        else:
            matches = (pattern.match(path) for pattern in self._layer_patterns)
            match = next((m for m in matches if m is not None), None)
        return match is not None and int(match["index"]) in self._layers

    def _layer_numbers(self) -> set[int] | None:
        value = self._config.get("layers_to_transform")
        if value is None:
            return None
        values = value if isinstance(value, list) else [value]
        return {self._config.checked_integer("layers_to_transform", x, 0) for x in values}

    def _matcher(self, field: str, names: str | list[str] | None) -> Callable[[str], bool] | None:
        if not names:
            return None
        if isinstance(names, str):
            return full_matcher(self._config, field, names)
        exact, suffixes = frozenset(names), tuple(f".{name}" for name in names)
        return lambda path: path in exact or path.endswith(suffixes)


class PatternTable:
    """rank_pattern or alpha_pattern: the first key that matches a path decides.

    Args:
        config: for messages.
        field: name of the field.

    Raises:
        AdapterMalformed: no object, too large, or an invalid pattern.
    """

    def __init__(self, config: PeftConfig, field: str):
        table = config.mapping(field)
        if len(table) > _MAX_TABLE:
            raise config.malformed(f"{field} has {len(table)} entries, more than {_MAX_TABLE}")
        self._entries = [
            (full_matcher(config, field, rf"(.*\.)?({key})$", plain=key), value)
            for key, value in table.items()
        ]

    def get(self, path: str, default: Any) -> Any:
        """The value for a module path."""
        return next((value for matches, value in self._entries if matches(path)), default)


def full_matcher(
    config: PeftConfig, field: str, pattern: str, plain: str | None = None
) -> Callable[[str], bool]:
    """`re.fullmatch` by `re` itself for plain names, by the bounded matcher for the rest."""
    if _PLAIN.fullmatch(pattern if plain is None else plain):
        compiled = re.compile(pattern)
        return lambda path: compiled.fullmatch(path) is not None
    try:
        bounded = Pattern(pattern, config.budget)
    except PatternError as error:
        raise config.malformed(f"{field} holds {pattern[:120]!r}: {error}") from None

    def matches(path: str) -> bool:
        try:
            return bounded.fullmatch(path)
        except PatternError as error:
            raise config.unsupported(
                f"{field} holds {pattern[:120]!r}: {error}", "Write a simpler pattern."
            ) from None

    return matches
