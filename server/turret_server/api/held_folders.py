"""Folders of the cache that stay while the engine may read them again."""

from __future__ import annotations

from turret_server.sources.cached import hold, release


class HeldFolders:
    """Which folders each digest was loaded from. A program that left the host is read again."""

    def __init__(self) -> None:
        self._folders: dict[str, set[str]] = {}

    def add(self, digest: str, folder: str) -> None:
        """The engine has read this content from a folder, which must be there."""
        folders = self._folders.setdefault(digest, set())
        if folder not in folders and hold(folder):
            folders.add(folder)

    def drop(self, digest: str) -> None:
        """The engine reads it no more."""
        for folder in self._folders.pop(digest, ()):
            release(folder)
