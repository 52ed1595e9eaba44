"""Names that processes use, so that none removes what another reads."""

from __future__ import annotations

import fcntl
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path


class Holds:
    """Locks on names: shared by whoever uses one, exclusive for who removes what it names.

    A name's lock is a byte of one file (a POSIX record lock): thousands take one descriptor, and
    the kernel ends them with their process. Within a process, where they never conflict, a count
    stands in. Where the file system knows no locks, nothing is removed.

    Args:
        path: the file; made if need be. Only one `Holds` of a process may open it: closing any
            other descriptor would end all its locks.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:  # a read-only cache
            self._file = -1
        self._counts: Counter[str] = Counter()
        self._guard = threading.Lock()

    def hold(self, name: str, is_ready: Callable[[], bool]) -> bool:
        """Use a name once more, if it is ready, which is asked while nobody can remove it.

        Args:
            name: begins with 15 hexadecimal digits.
            is_ready: quick; an error of its own goes on.
        """
        with self._guard:
            if not self._counts[name]:
                self._lock(name, fcntl.LOCK_SH)
            try:
                if is_ready():
                    self._counts[name] += 1
                    return True
                return False
            finally:
                if not self._counts[name]:
                    self._lock(name, fcntl.LOCK_UN)

    def release(self, name: str) -> None:
        """Undo one `hold`; a name that is not held is fine."""
        with self._guard:
            if self._counts[name] > 1:
                self._counts[name] -= 1
            elif self._counts.pop(name, 0):
                self._lock(name, fcntl.LOCK_UN)

    def remove(self, name: str, take_away: Callable[[], object]) -> bool:
        """Take away what a name means, unless it is used, here or in another process.

        Args:
            name: as for `hold`.
            take_away: quick; an error of its own goes on.
        """
        with self._guard:
            if self._counts[name] or not self._lock(name, fcntl.LOCK_EX | fcntl.LOCK_NB):
                return False
            try:
                take_away()
            finally:
                self._lock(name, fcntl.LOCK_UN)
            return True

    def _lock(self, name: str, operation: int) -> bool:
        if self._file < 0:
            return False
        try:
            fcntl.lockf(self._file, operation, 1, int(name[:15], 16))
        except OSError:
            return False
        return True
