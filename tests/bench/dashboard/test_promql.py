"""Expressions against figures worked out by hand."""

from __future__ import annotations

import pytest
from bench.dashboard.evaluate import History, evaluate
from bench.dashboard.promql import parse


@pytest.fixture
def history():
    history = History()
    for at_s in range(0, 61, 10):
        for zone, speed in (("a", 1.0), ("b", 3.0)):
            history.put(at_s, "done_total", speed * at_s, zone=zone, kind="x")
        history.put(at_s, "broken_total", at_s if at_s < 30 else at_s - 30, zone="a", kind="x")
        history.put(at_s, "level", at_s / 10, zone="a")
        for le, speed in (("1.0", 2), ("2.0", 3), ("4.0", 4), ("+Inf", 4)):
            history.put(at_s, "took_bucket", speed * at_s, le=le)
    return history


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rate(done_total[1m])", {"a": 1.0, "b": 3.0}),
        ('rate(done_total{zone!="a"}[1m])', {"b": 3.0}),
        ('rate(done_total{zone=~"a|c"}[1m])', {"a": 1.0}),
        ("sum by (zone) (increase(done_total[20s]))", {"a": 10.0, "b": 30.0}),
        ("sum (rate(done_total[1m]))", {"": 4.0}),
        ("increase(broken_total[2m])", {"a": 20.0 + 0.0 + 30.0}),
        ("max (level) * 2 + 1", {"": 13.0}),
        ("level > 6", {}),
        ("level >= 6", {"a": 6.0}),
        ("min_over_time(level[20s])", {"a": 5.0}),
        ("histogram_quantile(0.5, sum by (le) (rate(took_bucket[1m])))", {"": 1.0}),
        ("histogram_quantile(0.75, sum by (le) (rate(took_bucket[1m])))", {"": 2.0}),
        ("histogram_quantile(0.875, took_bucket)", {"": 3.0}),
        ("broken_total / done_total", {"a": 0.5}),
        ("done_total and broken_total", {"a": 60.0}),
        ("done_total unless broken_total", {"b": 180.0}),
        ("level and on (zone) done_total", {"a": 6.0}),
        ("absent(level)", {}),
        ("absent(nothing)", {"": 1.0}),
        ("clamp_min(level, 7)", {"a": 7.0}),
        ("count (done_total) or level", {"": 2.0, "a": 6.0}),
    ],
)
def test_values(history, text, expected):
    found = evaluate(parse(text), history, 60.0)
    assert {dict(labels).get("zone", ""): value for labels, value in found.items()} == expected


def test_what_has_not_been_seen_for_long_is_gone(history):
    assert evaluate(parse("level"), history, 359.0)
    assert not evaluate(parse("level"), history, 361.0)


@pytest.mark.parametrize(
    "text", ["", "a b", "sum(a", "a +", "nothing_known(a)", 'a{b="c"', "a{b=c}", "a[5x]", "a ?? b"]
)
def test_what_is_malformed_is_refused(text):
    with pytest.raises(ValueError):
        parse(text)


def test_a_series_ends_where_a_page_lacks_it():
    history = History()
    history.add(0.0, 'level{zone="a"} 1\nlevel{zone="b"} 2\n')
    history.add(10.0, 'level{zone="b"} 3\n')
    assert len(evaluate(parse("level"), history, 5.0)) == 2
    assert list(evaluate(parse("level"), history, 10.0).values()) == [3.0]
