"""Stop strings found in a stream of text, whatever the pieces it comes in."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence

from turret_server.errors import BadRequest


class StopStrings:
    """All stop strings of a request as one automaton (Aho and Corasick, 1975).

    The first stop string to become complete wins, reading character by character; of several that
    end with the same character, the longest. So the answer does not depend on where tokens or
    chunks end. Building costs the total length of the strings, a step one dictionary look-up.

    Args:
        stops: the strings, none empty.

    Raises:
        BadRequest: one of the strings is empty.
    """

    __slots__ = ("_depth", "_fail", "_first", "_found", "_next")

    def __init__(self, stops: Sequence[str]):
        self._next: list[dict[str, int]] = [{}]
        self._fail = [0]
        self._depth = [0]  # characters that a state has matched
        self._found: list[str | None] = [None]  # the longest stop string ending in a state
        for stop in stops:
            if not stop:
                raise BadRequest(
                    "'stop' holds an empty string",
                    "it would end every answer before its first character",
                    "Remove it, or leave 'stop' out.",
                    param="stop",
                )
            self._insert(stop)
        self._link()
        # Where nothing has been matched, only these characters matter.
        self._first = re.compile("|".join(map(re.escape, self._next[0])))

    def _insert(self, stop: str) -> None:
        state = 0
        for char in stop:
            state = self._next[state].setdefault(char, len(self._next))
            if state == len(self._next):
                self._next.append({})
                self._fail.append(0)
                self._depth.append(0)
                self._found.append(None)
        self._found[state] = stop

    def _link(self) -> None:
        queue = deque([0])
        while queue:
            state = queue.popleft()
            for char, child in self._next[state].items():
                self._depth[child] = self._depth[state] + 1
                self._fail[child] = self._step(self._fail[state], char) if state else 0
                if self._found[child] is None:
                    self._found[child] = self._found[self._fail[child]]
                queue.append(child)

    def scan(self, state: int, text: str) -> tuple[int, int | None]:
        """Read `text` up to the end of the first stop string.

        Args:
            state: what the text before has matched; 0 at the start.
            text: the next piece.

        Returns:
            The state after it, and the index behind a stop string (`found` names it) or None.
        """
        at, size = 0, len(text)
        while at < size:
            if state == 0:
                match = self._first.search(text, at)
                if match is None:
                    return 0, None
                at = match.start()
            state = self._step(state, text[at])
            at += 1
            if self._found[state] is not None:
                return state, at
        return state, None

    def found(self, state: int) -> str:
        """Return the stop string that is complete in `state`; "" for none."""
        return self._found[state] or ""

    def held(self, state: int) -> int:
        """Return how many of the last characters may be the start of a stop string."""
        return self._depth[state]

    def _step(self, state: int, char: str) -> int:
        while True:
            after = self._next[state].get(char)
            if after is not None:
                return after
            if state == 0:
                return 0
            state = self._fail[state]
