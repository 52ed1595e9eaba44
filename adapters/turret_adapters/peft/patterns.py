"""Python's regular expressions with bounded work: an adapter's config brings its own patterns.

`re` backtracks, holds the interpreter lock while it does, and cannot be interrupted: a config with
`(a+)+$` would stop the engine for years. This matcher walks the tree that `re` parses and carries
the *set* of positions reachable so far, so it does the same work for every pattern of a size. It
answers only whether a text matches, which is all that PEFT asks. Back references, atomic groups,
look-behind and flags are refused; no published adapter was seen to use them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from re import _constants as op  # pyright: ignore[reportAttributeAccessIssue]
from re import _parser  # pyright: ignore[reportAttributeAccessIssue]
from typing import Any

_MAX_PATTERN = 4000
_MAX_STEPS = 2_000_000  # about two seconds; real patterns need some thousand for a whole model

_CATEGORIES: dict[Any, Callable[[str], bool]] = {
    op.CATEGORY_DIGIT: str.isdecimal,
    op.CATEGORY_NOT_DIGIT: lambda c: not c.isdecimal(),
    op.CATEGORY_SPACE: str.isspace,
    op.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
    op.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
    op.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
}


class PatternError(ValueError):
    """A pattern that is no regular expression, or beyond what is matched here."""


class Budget:
    """The work that all patterns of one config may do together."""

    def __init__(self, steps: int = _MAX_STEPS):
        self._steps = steps

    def spend(self, steps: int) -> None:
        """Take `steps` off.

        Raises:
            PatternError: nothing is left.
        """
        self._steps -= steps
        if self._steps < 0:
            raise PatternError("the patterns take too long to match")


class Pattern:
    """A compiled pattern.

    Args:
        pattern: a regular expression in Python's syntax.
        budget: bounds the work of matching.

    Raises:
        PatternError: malformed, too long, or with flags.
    """

    def __init__(self, pattern: str, budget: Budget):
        if len(pattern) > _MAX_PATTERN:
            raise PatternError(f"it is {len(pattern)} characters long, more than {_MAX_PATTERN}")
        try:
            tree = _parser.parse(pattern)
        except (re.error, OverflowError, RecursionError, ValueError) as error:
            raise PatternError(f"it is no regular expression ({error})") from None
        if tree.state.flags & ~re.UNICODE:
            raise PatternError("it sets flags")
        self._tree = tree
        self._budget = budget

    def fullmatch(self, text: str) -> bool:
        """As `re.fullmatch(pattern, text) is not None`.

        Raises:
            PatternError: the budget is spent, or the pattern has an unsupported element.
        """
        try:
            return len(text) in self._walk(self._tree, text, {0})
        except RecursionError:
            raise PatternError("it nests too deeply") from None

    def _walk(self, items: Any, text: str, positions: set[int]) -> set[int]:
        self._budget.spend(1)  # items may be none: `(?:){60}`
        for code, argument in items:
            if not positions:
                break
            tests = len(argument) if code is op.IN else 1  # a class may name thousands
            self._budget.spend(len(positions) * tests)
            positions = self._step(code, argument, text, positions)
        return positions

    def _step(self, code: Any, argument: Any, text: str, positions: set[int]) -> set[int]:
        if code in (op.MAX_REPEAT, op.MIN_REPEAT):
            least, most, items = argument
            return self._repeat(least, most, items, text, positions)
        if code is op.BRANCH:
            return set().union(*(self._walk(branch, text, positions) for branch in argument[1]))
        if code is op.SUBPATTERN:
            _, add_flags, del_flags, items = argument
            if add_flags or del_flags:
                raise PatternError("it sets flags")
            return self._walk(items, text, positions)
        if code in (op.ASSERT, op.ASSERT_NOT):
            direction, items = argument
            if direction < 0:
                raise PatternError("it uses look-behind")
            wanted = code is op.ASSERT
            return {p for p in positions if bool(self._walk(items, text, {p})) == wanted}
        if code is op.AT:
            return {p for p in positions if _is_at(argument, text, p)}
        accepts = _accepts(code, argument)
        return {p + 1 for p in positions if p < len(text) and accepts(text[p])}

    def _repeat(
        self, least: int, most: int, items: Any, text: str, positions: set[int]
    ) -> set[int]:
        # After len(text) + 1 rounds the set is empty or, if an item may match nothing, complete.
        bound = len(text) + 1
        for _ in range(min(least, bound)):
            positions = self._walk(items, text, positions)
        reached = set(positions)
        for _ in range(min(most - least, bound)):
            positions = self._walk(items, text, positions) - reached
            if not positions:
                break
            reached |= positions
        return reached


def _accepts(code: Any, argument: Any) -> Callable[[str], bool]:
    """The test that one single-character element makes."""
    if code is op.LITERAL:
        return lambda c: ord(c) == argument
    if code is op.NOT_LITERAL:
        return lambda c: ord(c) != argument
    if code is op.ANY:
        return lambda c: c != "\n"
    if code is op.CATEGORY:
        return _CATEGORIES[argument]
    if code is op.RANGE:
        first, last = argument
        return lambda c: first <= ord(c) <= last
    if code is op.IN:
        negated = argument[0][0] is op.NEGATE
        tests = [_accepts(*item) for item in argument if item[0] is not op.NEGATE]
        return lambda c: any(test(c) for test in tests) != negated
    raise PatternError(f"it uses {str(code).lower().replace('_', ' ')}")


def _is_at(where: Any, text: str, position: int) -> bool:
    if where in (op.AT_BEGINNING, op.AT_BEGINNING_STRING):
        return position == 0
    if where is op.AT_END:
        return position == len(text) or (position == len(text) - 1 and text[position] == "\n")
    if where is op.AT_END_STRING:
        return position == len(text)
    if where in (op.AT_BOUNDARY, op.AT_NON_BOUNDARY):
        word = _CATEGORIES[op.CATEGORY_WORD]
        before = position > 0 and word(text[position - 1])
        after = position < len(text) and word(text[position])
        return (before != after) == (where is op.AT_BOUNDARY)
    raise PatternError(f"it uses {str(where).lower().replace('_', ' ')}")
