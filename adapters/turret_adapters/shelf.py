"""Adapters that are known by their folders' names and read when first asked for. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from turret_adapters.catalog import name_problem


class AdapterShelf:
    """Folders of adapter folders: every sub-folder offers an adapter under its own name.

    Nothing is read ahead: thousands of names cost a directory listing, and a folder that appears
    while serving can be named at once. Of two folders with one name the first shelf's is meant.

    Args:
        folders: the shelves.
    """

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self.use(folders)
        self._listed: dict[Path, tuple[int, list[str]]] = {}  # by folder: time of change, names

    def use(self, folders: Sequence[Path]) -> None:
        """Offer what lies in these folders from now on."""
        self._folders = [folder.expanduser().resolve() for folder in folders]

    def find(self, name: str) -> tuple[Path, Path] | None:
        """The folder of an adapter and the shelf it lies on; None if no shelf offers the name."""
        if self._folders and not name.startswith(".") and name_problem(name) is None:
            for folder in self._folders:
                if (folder / name).is_dir():
                    return folder / name, folder
        return None

    def state(self, folder: Path) -> tuple[tuple[str, int, int], ...] | None:
        """Name, size and time of change of a folder's files; None where it is gone."""
        try:
            with os.scandir(folder) as entries:
                found = [(entry.name, entry.stat()) for entry in entries]
        except OSError:
            return None
        return tuple(sorted((name, s.st_size, s.st_mtime_ns) for name, s in found))

    def names(self) -> list[str]:
        """Every name offered, in order."""
        return sorted({name for folder in self._folders for name in self._names(folder)})

    def _names(self, folder: Path) -> list[str]:
        try:
            changed = folder.stat().st_mtime_ns
            known = self._listed.get(folder)
            if known is None or known[0] != changed:
                with os.scandir(folder) as entries:
                    names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
                self._listed[folder] = changed, [n for n in names if name_problem(n) is None]
        except OSError:  # it was removed
            return []
        return self._listed[folder][1]
