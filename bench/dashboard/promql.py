"""As much of PromQL as the dashboard and the alerts use: text to a tree.

Grammar, binding loosest first: `or`; `and`, `unless`; comparisons; `+ -`; `* /`. Vectors meet where
all their labels are equal, or those of `on (...)`. What is not known is refused, so a typing error
does not pass for an empty panel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

FUNCTIONS = frozenset(
    {"rate", "increase", "histogram_quantile", "min_over_time", "absent", "clamp_min"}
)
AGGREGATES = frozenset({"sum", "max", "min", "avg", "count"})
_LEVELS = (("or",), ("and", "unless"), ("==", "!=", ">", "<", ">=", "<="), ("+", "-"), ("*", "/"))
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TOKEN = re.compile(
    r"\s*(?:(?P<string>\"[^\"\\]*\")|(?P<window>\[\d+[smhd]\])|(?P<number>\d+(?:\.\d+)?)"
    r"|(?P<name>[a-zA-Z_:][\w:]*)|(?P<sign>=~|!~|!=|==|>=|<=|[-+*/(){},=<>]))"
)


@dataclass(frozen=True, slots=True)
class Number:
    """A constant."""

    value: float


@dataclass(frozen=True, slots=True)
class Selector:
    """Series of a metric; with a window in seconds, what they were in it.

    `matchers` are (label, one of `= != =~ !~`, value).
    """

    metric: str
    matchers: tuple[tuple[str, str, str], ...] = ()
    window_s: float | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A function of its arguments."""

    function: str
    arguments: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Series put together, those with equal values of `by`."""

    function: str
    by: tuple[str, ...]
    of: Node


@dataclass(frozen=True, slots=True)
class Binary:
    """Two operands; `on` are the labels that must be equal, None for all."""

    operator: str
    left: Node
    right: Node
    on: tuple[str, ...] | None = None


Node = Number | Selector | Call | Aggregate | Binary


def parse(text: str) -> Node:
    """The tree of an expression.

    Raises:
        ValueError: it is malformed, or uses what is not known here.
    """
    parser = _Parser(text)
    tree = parser.level(0)
    if parser.kind:
        raise ValueError(f"{parser.value!r} is not expected in {text!r}")
    return tree


def selectors(node: Node) -> Iterator[Selector]:
    """Every selector of a tree."""
    match node:
        case Selector():
            yield node
        case Call():
            for argument in node.arguments:
                yield from selectors(argument)
        case Aggregate():
            yield from selectors(node.of)
        case Binary():
            yield from selectors(node.left)
            yield from selectors(node.right)


def groupings(node: Node) -> Iterator[tuple[tuple[str, ...], Node]]:
    """Every list of labels by which something is grouped, and that something."""
    match node:
        case Call():
            for argument in node.arguments:
                yield from groupings(argument)
        case Aggregate():
            yield node.by, node.of
            yield from groupings(node.of)
        case Binary():
            if node.on is not None:
                yield from ((node.on, side) for side in (node.left, node.right))
            yield from groupings(node.left)
            yield from groupings(node.right)


class _Parser:
    """Recursive descent; `kind` and `value` are the next token's, `kind` is "" at the end."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text.rstrip(), 0
        self.kind = self.value = ""
        self._next()

    def level(self, depth: int) -> Node:
        """Operators of one level and everything that binds tighter."""
        if depth == len(_LEVELS):
            return self._operand()
        left = self.level(depth + 1)
        while self.kind and self.value in _LEVELS[depth]:
            operator = self._take()
            on = self._labels() if self.value == "on" and self._take() else None
            left = Binary(operator, left, self.level(depth + 1), on)
        return left

    def _operand(self) -> Node:
        if self.kind == "number":
            return Number(float(self._take()))
        if self.value == "(":
            self._take("(")
            inside = self.level(0)
            self._take(")")
            return inside
        if self.kind != "name":
            raise ValueError(f"an operand is missing before {self.value!r} in {self._text!r}")
        name = self._take()
        if name in AGGREGATES:
            return self._aggregate(name)
        if self.value == "(":
            if name not in FUNCTIONS:
                raise ValueError(f"the function {name!r} is not known")
            return Call(name, self._arguments())
        return self._selector(name)

    def _aggregate(self, function: str) -> Aggregate:
        by = self._labels() if self.value == "by" and self._take() else ()
        (of,) = self._arguments()
        return Aggregate(function, by, of)

    def _arguments(self) -> tuple[Node, ...]:
        self._take("(")
        found = [self.level(0)]
        while self.value == ",":
            self._take()
            found.append(self.level(0))
        self._take(")")
        return tuple(found)

    def _selector(self, metric: str) -> Selector:
        matchers, window_s = [], None
        if self.value == "{":
            self._take()
            while self.value != "}":
                label, operator, value = self._take(), self._take(), self._take()
                if operator not in ("=", "!=", "=~", "!~") or not value.startswith('"'):
                    raise ValueError(f"{label}{operator}{value} is no matcher")
                matchers.append((label, operator, value[1:-1]))
                if self.value == ",":
                    self._take()
            self._take("}")
        if self.kind == "window":
            window = self._take()
            window_s = int(window[1:-2]) * _UNITS[window[-2]]
        return Selector(metric, tuple(matchers), window_s)

    def _labels(self) -> tuple[str, ...]:
        self._take("(")
        found = []
        while self.value != ")":
            found.append(self._take())
            if self.value == ",":
                self._take()
        self._take(")")
        return tuple(found)

    def _take(self, expected: str | None = None) -> str:
        value = self.value
        if not self.kind or (expected is not None and value != expected):
            raise ValueError(f"{expected or 'more'} is expected, not {value!r}, in {self._text!r}")
        self._next()
        return value

    def _next(self) -> None:
        if self._at == len(self._text):
            self.kind = self.value = ""
            return
        found = _TOKEN.match(self._text, self._at)
        if found is None:
            raise ValueError(f"{self._text[self._at :]!r} is not understood")
        self.kind, self._at = found.lastgroup or "", found.end()
        self.value = found[self.kind]
