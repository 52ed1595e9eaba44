"""Fused requests in the scheduler: members start, step, are preempted and leave together."""

from __future__ import annotations

import pytest
from tests.server.engine.test_scheduler import BLOCK, Adapters, Bench, drain

from turret_server.engine.blocks import BlockPool
from turret_server.engine.messages import ErrorInfo
from turret_server.engine.rooms import Room


def test_members_hold_their_last_tokens_back_for_each_other():
    bench = Bench(max_step_tokens=6)
    bench.add("a", 4, members=[([9] * 8, ["x"])])
    counts = [[count for _, count in bench.step()[0]] for _ in range(4)]
    # 3 of the lead and 3 of the other, then 4 that are left before its last, then both last ones.
    assert [sorted(c) for c in counts] == [[3, 3], [1, 5], [1, 1], [1, 1]]


def test_members_have_the_room_of_a_step_together_or_wait():
    bench = Bench(max_running=3)
    bench.add("a", 4, max_tokens=4)
    bench.add("pair", [5], max_tokens=4, members=[([6], ["x"]), ([7], ["y"])])
    bench.add("b", [8], max_tokens=4)
    started = [{name for name, _ in bench.step()[0]} for _ in range(9)]
    assert started[:4] == [{"a"}] * 4  # nobody overtakes those who wait for three rows
    assert started[4:8] == [{"pair"}] * 4
    assert started[8] == {"b"}


def test_members_without_their_adapters_hold_up_nobody():
    bench = Bench(max_running=3)
    bench.adapters.absent.add("away")
    bench.add("a", [1], max_tokens=9)
    bench.step()
    bench.add("three", [2], members=[([3], ["away"]), ([4], [])])
    bench.add("b", [5])
    assert sorted(name for name, _ in bench.step()[0]) == ["a", "b"]


def test_members_that_can_never_run_are_told_so_before_there_are_rows():
    bench = Bench(max_running=2)
    bench.add("a", [1], max_tokens=9)
    bench.step()
    bench.add("pair", [2], members=[([3], ["bad"])])
    bench.adapters.failed["bad"] = ErrorInfo("NotFound", "it was unloaded")
    assert [(e.id, e.error.what) for e in bench.step()[1] if e.error] == [
        ("pair", "it was unloaded")
    ]


def test_members_are_preempted_together_and_lose_nothing():
    bench = Bench(blocks=9, max_model_len=24)
    for i in range(3):
        bench.add(f"r{i}", [i] * 5, max_tokens=10, members=[([i, 8] * 2, ["x"])])
    events = drain(bench)
    assert bench.scheduler.preemptions > 0
    for i in range(3):
        assert sum(len(e.tokens) for e in events if e.id == f"r{i}") == 10
    bench.assert_clean()


def test_nobody_gives_way_for_blocks_of_a_model_that_it_does_not_run():
    small = Room(BlockPool(5, BLOCK), 64, Adapters())
    bench = Bench(blocks=64, auxiliaries={"small": small})
    for i in range(2):
        bench.add(f"pair{i}", [i], max_tokens=12, members=[([i], [], "small")])
        bench.step()
    alone = [bench.add(f"alone{i}", [9, i], max_tokens=30) for i in range(3)]
    bench.step()
    for _ in range(8):
        bench.step()
        assert all(sequence.is_running for sequence in alone)
    assert bench.scheduler.preemptions == 1
    drain(bench)
    bench.assert_clean()


def test_who_waits_for_blocks_of_an_auxiliary_holds_up_nobody_else():
    small = Room(BlockPool(5, BLOCK), 64, Adapters())
    bench = Bench(blocks=64, auxiliaries={"small": small})
    bench.add("pair", [1], members=[([1] * 12, [], "small")])
    bench.step()
    bench.add("waits", [2], members=[([2] * 12, [], "small")])
    bench.add("alone", [3])
    assert "alone" in {name for name, _ in bench.step()[0]}


def test_members_pin_an_adapter_once_and_wait_for_all_of_them():
    bench = Bench()
    bench.adapters.absent.add("y")
    bench.add("a", 4, adapters=["x"], members=[([1], ["x", "y"]), ([2], ["y"])], max_tokens=9)
    assert bench.step()[0] == []
    assert not any(bench.adapters.pins.values())
    bench.adapters.absent.clear()
    assert len(bench.step()[0]) == 3
    assert bench.adapters.pins == {"x": 1, "y": 1}
    bench.scheduler.cancel("a")
    bench.assert_clean()


def test_every_model_pins_its_adapters_or_none_does():
    small = Room(BlockPool(16, BLOCK), 64, Adapters())
    bench = Bench(auxiliaries={"small": small})
    members = [([1], ["x"], "small"), ([2], ["y"], "small"), ([3], [], "small")]
    bench.adapters.absent.add("x")
    bench.add("a", 4, adapters=["x"], members=members, max_tokens=9)
    assert bench.step()[0] == []
    assert not any((bench.adapters.pins | small.adapters.pins).values())
    bench.adapters.absent, small.adapters.absent = set(), {"y"}
    assert bench.step()[0] == []
    assert not any((bench.adapters.pins | small.adapters.pins).values())
    small.adapters.absent = set()
    assert len(bench.step()[0]) == 4
    assert (bench.adapters.pins, small.adapters.pins) == ({"x": 1}, {"x": 1, "y": 1})
    small.adapters.failed["y"] = ErrorInfo("Unprocessable", "it broke")
    bench.add("b", 4, members=members)
    assert [e.error.what for e in bench.step()[1] if e.error] == ["it broke"]
    bench.scheduler.cancel("a")
    bench.assert_clean()
    assert not any(small.adapters.pins.values())


def test_the_longest_member_limits_the_answer():
    bench = Bench(max_model_len=12)
    bench.add("a", 4, max_tokens=50, members=[([3] * 9, [])])
    assert sum(len(e.tokens) for e in drain(bench)) == 3


@pytest.mark.parametrize(
    ("limits", "fields", "kind"),
    [
        ({"max_running": 2}, {}, "Unprocessable"),
        ({"max_step_tokens": 2}, {}, "Unprocessable"),
        ({"blocks": 5}, {"max_tokens": 5}, "PromptTooLong"),
    ],
    ids=["rows", "tokens", "blocks"],
)
def test_members_that_never_fit_are_told_apart(limits, fields, kind):
    bench = Bench(**limits)
    with pytest.raises(AssertionError):
        bench.add("a", 4, members=[([5], []), ([6], [])], **fields)
    sequence = Bench().add("a", 4, members=[([5], []), ([6], [])], **fields)
    assert bench.scheduler.obstacle(sequence).kind == kind
