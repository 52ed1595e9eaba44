"""Which kinds exist, and which of them an adapter folder belongs to."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from turret_adapters import kinds
from turret_adapters.errors import AdapterNotFound, AdapterUnsupported, listing, quote
from turret_adapters.peft.refused import REFUSED
from turret_adapters.spec import Kind

if TYPE_CHECKING:
    from turret_adapters.files import AdapterFiles

ENTRY_POINT_GROUP = "turret.kinds"


@cache
def discover(*, plugins: bool = True) -> Mapping[str, Kind]:
    """The kinds by name: every module in `kinds/`, then the plug-ins.

    Args:
        plugins: load the entry points of the group "turret.kinds", each a `Kind`.

    Raises:
        TypeError: a plug-in is no `Kind`.
        ValueError: two kinds have one name.
    """
    found = [
        importlib.import_module(f"{kinds.__name__}.{module.name}").KIND
        for module in pkgutil.iter_modules(kinds.__path__)
    ]
    if plugins:
        found += [point.load() for point in entry_points(group=ENTRY_POINT_GROUP)]
    by_name: dict[str, Kind] = {}
    for kind in found:
        if not isinstance(kind, Kind):
            raise TypeError(f"{kind!r} in the entry points {ENTRY_POINT_GROUP!r} is no Kind")
        if kind.name in by_name:
            raise ValueError(f"two kinds are called {kind.name!r}")
        by_name[kind.name] = kind
    return by_name


def detect(files: AdapterFiles, known: Mapping[str, Kind] | None = None) -> Kind:
    """The kind of an adapter folder.

    Args:
        files: the folder.
        known: the kinds to choose from; `discover()` by default.

    Raises:
        AdapterNotFound: the folder holds nothing that any kind reads.
        AdapterUnsupported: a kind that is not known, or more than one.
        AdapterMalformed: its config is damaged.
    """
    known = discover() if known is None else known
    matches = [kind for kind in known.values() if kind.detect(files)]
    if len(matches) == 1:
        return matches[0]
    what = f"adapter {quote(str(files.path))} was not loaded"
    if matches:
        names = listing([kind.name for kind in matches])
        raise AdapterUnsupported(what, f"it is of several kinds: {names}", "Split it.")
    wanted = sorted({name for kind in known.values() for name in kind.files})
    missing = [name for name in wanted if not files.has(name)]
    configs = [name for name in wanted if name.endswith(".json") and files.has(name)]
    if not configs:
        raise AdapterNotFound(
            what,
            f"the folder lacks {listing(missing)}; it holds {listing(files.names()) or 'nothing'}",
            "Name the folder that PEFT's save_pretrained wrote.",
        )
    configs_read = [files.json(name) for name in configs]
    declared = [str(config.get("peft_type", config.get("kind"))) for config in configs_read]
    for declared_type in declared:
        if declared_type in REFUSED:
            raise AdapterUnsupported(what, *REFUSED[declared_type])
    raise AdapterUnsupported(
        what,
        f"{listing(configs)} declares the type {listing(declared)}; "
        f"this server reads the kinds {', '.join(known)}",
        "Convert it, or install a plug-in that reads it.",
    )
