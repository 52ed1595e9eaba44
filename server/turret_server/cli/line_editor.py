"""Reading a line on a terminal: history, completion of commands and model names, pasting."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import ModuleType

try:
    import readline as _readline
except ImportError:  # Windows: lines are read without editing
    _readline = None

readline: ModuleType | None = _readline

# A part of a stack such as a:0.7+b is completed by itself.
_DELIMITERS = " \t\n+"


class LineEditor:
    """Prompts for lines.

    Args:
        commands: the slash commands.
        naming: those of them that take a model name.
        models: (name, is an adapter) of everything served, asked for at each completion.
    """

    def __init__(
        self,
        commands: Sequence[str],
        naming: Sequence[str],
        models: Callable[[], Sequence[tuple[str, bool]]],
    ) -> None:
        self._commands = commands
        self._naming = naming
        self._models = models
        self._matches: list[str] = []
        if readline is not None:
            readline.set_completer(self._complete)
            readline.set_completer_delims(_DELIMITERS)
            if "libedit" in (readline.__doc__ or ""):
                readline.parse_and_bind("bind ^I rl_complete")
            else:
                readline.parse_and_bind("tab: complete")
                # Pasted lines are one message, not one each.
                readline.parse_and_bind("set enable-bracketed-paste on")

    def read(self, label: str) -> str:
        """Read one message; a line that ends in a backslash goes on in the next.

        Raises:
            EOFError: Ctrl-D.
            KeyboardInterrupt: Ctrl-C.
        """
        line = input(_prompt(f"{label}>"))
        while line.endswith("\\"):
            line = line[:-1] + "\n" + input(_prompt("…"))
        return line

    def matches(self, line: str, word: str) -> list[str]:
        """Completions of `word`, the last part of `line`."""
        if line.startswith("/") and line == word:
            return [f"{command} " for command in self._commands if command.startswith(word)]
        command, _, argument = line.partition(" ")
        if command not in self._naming:
            return []
        stacking = "+" in argument  # only adapters can be stacked
        names = [name for name, is_adapter in self._models() if is_adapter or not stacking]
        return sorted(name for name in names if name.startswith(word))

    def _complete(self, word: str, state: int) -> str | None:
        assert readline is not None
        if state == 0:
            line = readline.get_line_buffer()[: readline.get_endidx()]
            self._matches = self.matches(line.lstrip(), word)
        return self._matches[state] if state < len(self._matches) else None


def _prompt(text: str) -> str:
    """The text in bold; readline must be told which characters take no room."""
    if readline is None or "libedit" in (readline.__doc__ or "") or os.environ.get("NO_COLOR"):
        return f"{text} "
    return f"\001\033[1;36m\002{text}\001\033[0m\002 "
