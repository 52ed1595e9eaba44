"""Expressions over scraped pages.

Differs from Prometheus in one thing: rates are between the first and the last sample of a window,
and not extrapolated to its ends.
"""

from __future__ import annotations

import math
import operator
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from bench.dashboard.promql import Aggregate, Binary, Call, Node, Number, Selector
from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
_STALE_S = 300.0
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "==": operator.eq, "!=": operator.ne, ">": operator.gt,
    "<": operator.lt, ">=": operator.ge, "<=": operator.le,
}  # fmt: skip
_COMPUTE: dict[str, Callable[[float, float], float]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul,
    "/": lambda a, b: a / b if b else float("nan"),
}  # fmt: skip
_GATHER: dict[str, Callable[[list[float]], float]] = {
    "sum": sum, "max": max, "min": min, "count": len, "avg": lambda v: sum(v) / len(v),
}  # fmt: skip


class History:
    """What pages showed, over time."""

    def __init__(self) -> None:
        self._series: dict[str, dict[Labels, tuple[list[float], list[float]]]] = {}
        self._shown: set[tuple[str, Labels]] = set()  # by the last page

    def add(self, at_s: float, page: str, **labels: str) -> None:
        """One page, with the labels that Prometheus would add, such as `instance`.

        What the page before had and this one lacks ends here.
        """
        gone, self._shown = self._shown, set()
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                self.put(at_s, sample.name, sample.value, **sample.labels, **labels)
                self._shown.add((sample.name, frozenset((sample.labels | labels).items())))
        for name, series in gone - self._shown:
            self.put(at_s, name, math.nan, **dict(series))

    def put(self, at_s: float, name: str, value: float, /, **labels: str) -> None:
        """One sample."""
        series = self._series.setdefault(name, {})
        times, values = series.setdefault(frozenset(labels.items()), ([], []))
        times.append(at_s)
        values.append(value)

    def series(self) -> Iterator[tuple[str, Labels]]:
        """Names and labels of everything."""
        for name, series in self._series.items():
            for labels in series:
                yield name, labels

    def select(self, selector: Selector) -> dict[Labels, tuple[list[float], list[float]]]:
        """The series that a selector means, with times and values."""
        return {
            labels: points
            for labels, points in self._series.get(selector.metric, {}).items()
            if all(_matches(dict(labels), *matcher) for matcher in selector.matchers)
        }


def evaluate(node: Node, history: History, at_s: float) -> Vector | float:
    """The value of an expression at a time.

    Raises:
        ValueError: operands do not fit their operator.
    """
    match node:
        case Number():
            return node.value
        case Selector():
            return _instant(node, history, at_s)
        case Call():
            return _call(node, history, at_s)
        case Aggregate():
            groups: dict[Labels, list[float]] = {}
            for labels, value in _vector(node.of, history, at_s).items():
                groups.setdefault(_only(labels, node.by), []).append(value)
            return {labels: _GATHER[node.function](found) for labels, found in groups.items()}
        case Binary():
            return _binary(node, history, at_s)


def _vector(node: Node, history: History, at_s: float) -> Vector:
    found = evaluate(node, history, at_s)
    if isinstance(found, float):
        raise ValueError(f"{node} is a number where series are expected")
    return found


def _instant(selector: Selector, history: History, at_s: float) -> Vector:
    found = {}
    for labels, (times, values) in history.select(selector).items():
        last = bisect_right(times, at_s) - 1
        if last >= 0 and at_s - times[last] <= _STALE_S and not math.isnan(values[last]):
            found[labels] = values[last]
    return found


def _windows(node: Node, history: History, at_s: float) -> dict[Labels, list[tuple[float, float]]]:
    if not isinstance(node, Selector) or node.window_s is None:
        raise ValueError(f"{node} has no window")
    found = {}
    for labels, (times, values) in history.select(node).items():
        first, end = bisect_right(times, at_s - node.window_s), bisect_right(times, at_s)
        if first < end:
            points = zip(times[first:end], values[first:end], strict=True)
            found[labels] = [point for point in points if not math.isnan(point[1])]
    return {labels: points for labels, points in found.items() if points}


def _call(node: Call, history: History, at_s: float) -> Vector:
    match node.function, node.arguments:
        case "rate" | "increase", (Selector() as selector,):
            found = {}
            for labels, points in _windows(selector, history, at_s).items():
                seconds = points[-1][0] - points[0][0]
                if not seconds:
                    continue
                # A counter that is lower than before has begun again at zero.
                grown = sum(b - a if b >= a else b for (_, a), (_, b) in pairwise(points))
                found[labels] = grown / seconds if node.function == "rate" else grown
            return found
        case "min_over_time", (Selector() as selector,):
            windows = _windows(selector, history, at_s)
            return {labels: min(v for _, v in points) for labels, points in windows.items()}
        case "histogram_quantile", (Number() as share, buckets):
            return _quantiles(share.value, _vector(buckets, history, at_s))
        case "absent", (of,):
            return {} if _vector(of, history, at_s) else {frozenset(): 1.0}
        case "clamp_min", (of, Number() as least):
            found = _vector(of, history, at_s)
            return {labels: max(value, least.value) for labels, value in found.items()}
    raise ValueError(f"{node} is not known here")


def _quantiles(share: float, buckets: Vector) -> Vector:
    groups: dict[Labels, list[tuple[float, float]]] = {}
    for labels, count in buckets.items():
        rest = frozenset((name, value) for name, value in labels if name != "le")
        groups.setdefault(rest, []).append((float(dict(labels)["le"]), count))
    found = {}
    for labels, points in groups.items():
        points.sort()
        wanted = share * points[-1][1]
        if not wanted:
            continue
        below, before = 0.0, 0.0
        for limit, count in points:
            if count >= wanted:
                is_open = limit == float("inf")
                inside = 0.0 if is_open else (limit - below) * (wanted - before) / (count - before)
                found[labels] = below + inside
                break
            below, before = limit, count
    return found


def _binary(node: Binary, history: History, at_s: float) -> Vector | float:
    left, right = evaluate(node.left, history, at_s), evaluate(node.right, history, at_s)
    if isinstance(left, float) and isinstance(right, float):
        return _COMPUTE[node.operator](left, right)
    if isinstance(left, float):
        assert isinstance(right, dict)
        return {labels: _COMPUTE[node.operator](left, value) for labels, value in right.items()}
    if isinstance(right, float):
        pairs = [(labels, value, right) for labels, value in left.items()]
        return _paired(node.operator, pairs)
    keyed = {_key(labels, node.on): value for labels, value in right.items()}
    keys = {labels: _key(labels, node.on) for labels in left}
    if node.operator == "or":
        known = set(keys.values())
        return left | {n: v for n, v in right.items() if _key(n, node.on) not in known}
    if node.operator in ("and", "unless"):
        is_wanted = node.operator == "and"
        return {n: v for n, v in left.items() if (keys[n] in keyed) is is_wanted}
    pairs = [(n, v, keyed[keys[n]]) for n, v in left.items() if keys[n] in keyed]
    return _paired(node.operator, pairs)


def _paired(sign: str, pairs: Iterable[tuple[Labels, float, float]]) -> Vector:
    if sign in _COMPARE:
        return {labels: a for labels, a, b in pairs if _COMPARE[sign](a, b)}
    return {labels: _COMPUTE[sign](a, b) for labels, a, b in pairs}


def _key(labels: Labels, on: tuple[str, ...] | None) -> Labels:
    return labels if on is None else _only(labels, on)


def _only(labels: Labels, names: tuple[str, ...]) -> Labels:
    return frozenset((name, value) for name, value in labels if name in names)


def _matches(labels: dict[str, str], name: str, sign: str, value: str) -> bool:
    given = labels.get(name, "")
    is_equal = given == value if sign in ("=", "!=") else bool(re.fullmatch(value, given))
    return is_equal is (sign in ("=", "=~"))
