from __future__ import annotations

import pytest

from turret_server.telemetry.usage import OTHER, UsageByName


@pytest.fixture
def usage(clock):
    return UsageByName(3, clock)


def count(usage, *names):
    for name in names:
        usage.of(name).requests += 1


def counts(usage):
    return {name: used.requests for name, used in usage.items()}


def test_names_beyond_the_budget_are_counted_together(usage):
    count(usage, "a", "b", "c", "d", "e", "a")
    assert counts(usage) == {"b": 1, "c": 1, "a": 2, OTHER: 2}


def test_a_flood_of_names_brings_no_new_labels_within_the_hour(usage, clock):
    seen = set()
    for i in range(10_000):
        count(usage, f"name-{i}")
        clock.now += 0.3  # 50 minutes in all
        seen.update(counts(usage))
    assert seen == {"name-0", "name-1", "name-2", OTHER}
    assert sum(counts(usage).values()) == 10_000


def test_the_name_not_seen_for_longest_makes_room_after_an_hour(usage, clock):
    count(usage, "a", "b", "c")
    clock.now = 1800.0
    count(usage, "a")
    clock.now = 3601.0
    count(usage, "d", "e", "f")
    assert counts(usage) == {"a": 2, "d": 1, "e": 1, OTHER: 1}


def test_what_leaves_makes_room_at_once(usage):
    count(usage, "a", "b", "c")
    usage.forget("b")
    usage.keep(lambda name: name != "c")
    count(usage, "d")
    assert counts(usage) == {"a": 1, "d": 1}


def test_a_name_that_is_called_other_gets_no_label(usage):
    assert usage.label(OTHER) == OTHER
    assert OTHER not in usage


def test_without_a_budget_everything_is_counted_together():
    usage = UsageByName(0)
    count(usage, "a", "b")
    assert counts(usage) == {OTHER: 2}
