"""Compiled adapters on the host, the least recently used dropped first."""

from __future__ import annotations

from collections import OrderedDict

from turret_adapters.spec import Program


class HostCache:
    """Programs by digest, up to a number of bytes. The caller serialises access.

    Args:
        max_bytes: the newest program is kept even if it alone is larger.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._programs: OrderedDict[str, Program] = OrderedDict()
        self.num_bytes = 0

    def digests(self) -> list[str]:
        """Digests of the programs."""
        return list(self._programs)

    def get(self, digest: str) -> Program | None:
        """The program, which is then the most recently used."""
        if digest in self._programs:
            self._programs.move_to_end(digest)
        return self._programs.get(digest)

    def put(self, digest: str, program: Program) -> None:
        """Keep a program and drop what no longer fits beside it."""
        self.discard(digest)
        self._programs[digest] = program
        self.num_bytes += program.num_bytes
        while self.num_bytes > self._max_bytes and len(self._programs) > 1:
            self.discard(next(iter(self._programs)))

    def discard(self, digest: str) -> None:
        """Drop a program if it is here."""
        program = self._programs.pop(digest, None)
        if program is not None:
            self.num_bytes -= program.num_bytes
