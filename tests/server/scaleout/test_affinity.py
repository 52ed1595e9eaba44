"""Where requests go, without Ray."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from turret_server.scaleout.affinity import BALANCE, names_in, order, preferred

REPLICAS = ["a", "b", "c", "d"]
NAMES = [f"adapter-{i}" for i in range(2000)]


def body(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def home(name: str, replicas: list[str]) -> str:
    return preferred([name], replicas)[0]


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"model": "sql"}, ("sql",)),
        ({"model": "base"}, ()),
        ({"model": "sql:0.7+dates"}, ("dates", "sql")),
        ({"model": "base", "adapters": [{"name": "sql", "weight": 2}, "dates"]}, ("dates", "sql")),
        ({"model": ["sql"], "adapters": {"name": "sql"}, "prompt": "x"}, ()),
        ({"adapters": [{"name": 1}, None, {"weight": 1}]}, ()),
        ({}, ()),
    ],
)
def test_names_in_a_body(fields, names):
    assert names_in(body(**fields), {"base"}) == names


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"model":' + b"[" * 10**5, b'{"model": NaN}']
)
def test_what_is_no_body_names_nothing(data):
    assert names_in(data) == ()


def test_a_body_cannot_name_without_end():
    assert len(names_in(body(model="+".join(NAMES), adapters=NAMES))) <= 130


def test_homes_are_even():
    count = Counter(home(name, REPLICAS) for name in NAMES)
    assert all(400 < n < 600 for n in count.values())


def test_only_the_adapters_of_a_replica_that_went_move():
    """The promise of rendezvous hashing."""
    for name in NAMES:
        before, after = home(name, REPLICAS), home(name, ["a", "b", "d"])
        assert after == before or before == "c"


def test_a_new_replica_takes_its_share_and_no_more():
    moved = [n for n in NAMES if home(n, [*REPLICAS, "e"]) != home(n, REPLICAS)]
    assert {home(name, [*REPLICAS, "e"]) for name in moved} == {"e"}
    assert 300 < len(moved) < 500


def test_a_stack_goes_where_most_of_it_lives():
    names = [name for name in NAMES if home(name, REPLICAS) == "b"][:2]
    names += [name for name in NAMES if home(name, REPLICAS) == "c"][:1]
    assert preferred(names, REPLICAS)[0] == "b"


def test_the_favourite_is_kept_while_little_is_in_flight():
    loads = dict.fromkeys(REPLICAS, 0) | {home("x", REPLICAS): 3}
    assert order(["x"], loads, slack=4)[0] == home("x", REPLICAS)


def test_a_hot_adapter_spills():
    """One adapter alone: no replica gets more than the bound, the favourite gets the most."""
    loads = dict.fromkeys(REPLICAS, 0)
    for _ in range(100):
        loads[order(["hot"], loads, slack=4)[0]] += 1
    assert max(loads.values()) == loads[home("hot", REPLICAS)] <= BALANCE * 100 / 4 + 1
    assert sum(loads.values()) == 100


def test_those_above_the_bound_come_last_the_least_busy_first():
    loads = {"a": 50, "b": 40, "c": 0, "d": 0}
    assert order(["x"], loads, slack=4)[2:] == ["b", "a"]


def test_the_base_goes_where_the_least_is_in_flight():
    assert order([], {"a": 2, "b": 1, "c": 3}, slack=4) == ["b", "a", "c"]
    first = Counter(order([], {"a": 0, "b": 0}, slack=4)[0] for _ in range(200))
    assert min(first["a"], first["b"]) > 50


def test_no_replicas():
    assert order(["x"], {}, slack=4) == order([], {}, slack=4) == []
