"""Whose turn it is: tenants, their adapters, and what one may not take from another."""

import random

from tests.server.engine.test_scheduler import Bench, drain


def test_tenants_take_turns_however_many_one_sends():
    bench = Bench(max_running=1)
    for i in range(6):
        bench.add(f"noisy{i}", [1, 2, i], key="noisy")
    bench.add("quiet", [1, 2, 9], key="quiet")
    order = [e.id for e in drain(bench) if e.finish_reason]
    assert order.index("quiet") <= 1


def test_a_heavier_tenant_is_served_more():
    bench = Bench(max_running=1)
    for i in range(30):
        bench.add(f"a{i}", [1, 2, i], key="a", weight=2.0)
        bench.add(f"b{i}", [1, 3, i], key="b", weight=1.0)
    order = [e.id[0] for e in drain(bench) if e.finish_reason]
    assert order[:30].count("a") == 20


def test_idleness_earns_no_credit():
    bench = Bench(max_running=1)
    for i in range(4):
        bench.add(f"a{i}", [1, i], key="a", max_tokens=20)
    for _ in range(30):
        bench.step()
    for i in range(4):
        bench.add(f"b{i}", [2, i], key="b", max_tokens=20)
    order = [e.id[0] for e in drain(bench) if e.finish_reason]
    assert "".join(order) != "bbbb" + "a" * (len(order) - 4)


def test_tenants_take_turns_within_one_step():
    bench = Bench(max_running=4)
    for i in range(6):
        bench.add(f"noisy{i}", [1, 2, i], key="noisy")
    bench.add("quiet0", [1, 3, 8], key="quiet")
    bench.add("quiet1", [1, 3, 9], key="quiet")
    assert sorted(name for name, _ in bench.step()[0]) == ["noisy0", "noisy1", "quiet0", "quiet1"]


def test_a_newcomer_starts_level_with_those_that_wait():
    """Not at zero, from where it would shut out the others until it has caught up."""
    bench = Bench(max_running=1)
    for i in range(40):
        bench.add(f"a{i}", [1, i], key="a")
    for _ in range(60):
        bench.step()
    for i in range(20):
        bench.add(f"b{i}", [2, i], key="b")
    order = [e.id[0] for e in drain(bench) if e.finish_reason][:20]
    assert order.count("a") in (9, 10, 11)


def test_a_hot_adapter_leaves_its_siblings_their_turns():
    bench = Bench(max_running=1)
    for i in range(20):
        bench.add(f"hot{i}", [1, 2, i], adapters=["hot"], key="a")
    for i in range(3):
        bench.add(f"cold{i}", [1, 2, i], adapters=["cold"], key="a")
    order = [e.id[:-1] for e in drain(bench) if e.finish_reason]
    assert order[:7].count("cold") == 3


def test_adapters_of_a_tenant_share_by_weight():
    bench = Bench(max_running=1)
    for i in range(30):
        bench.add(f"a{i}", [1, 2, i], adapters=["a"], lane_weight=2.0)
        bench.add(f"b{i}", [1, 2, i], adapters=["b"])
    order = [e.id[0] for e in drain(bench) if e.finish_reason]
    assert order[:30].count("a") == 20


def test_many_adapters_win_a_tenant_nothing():
    bench = Bench(max_running=1)
    for i in range(30):
        bench.add(f"a{i}", [1, 2, i], adapters=[f"a{i}"], key="a")
        bench.add(f"b{i}", [1, 2, i], adapters=["b"], key="b")
    order = [e.id[0] for e in drain(bench) if e.finish_reason]
    assert order[:30].count("a") == 15


def test_a_tenant_with_all_rows_gives_those_back_that_are_anothers_share():
    bench = Bench(blocks=64, max_running=4)
    for i in range(8):
        bench.add(f"noisy{i}", [1, i], key="noisy", max_tokens=40)
    bench.step()
    for i in range(3):
        bench.add(f"quiet{i}", [2, i], key="quiet", max_tokens=40)
    for _ in range(4):
        plan, _ = bench.step()
    assert sorted(name for name, _ in plan) == ["noisy0", "noisy1", "quiet0", "quiet1"]
    assert bench.scheduler.preemptions == 2
    reasons = [e.finish_reason for e in drain(bench) if e.finish_reason]
    assert reasons == ["length"] * 11
    bench.assert_clean()


def closed_loops(workers, weights, *, steps, pause=0):
    """Workers of each tenant that ask again and again; tokens computed, and steps waited."""
    bench = Bench(blocks=256, max_running=8, max_step_tokens=64)
    rng, count, waits = random.Random(0), 0, {key: [] for key in workers}
    served, sent = dict.fromkeys(workers, 0), {}
    due = {key: [0] * number for key, number in workers.items()}
    for step in range(steps):
        for key, times in due.items():
            while times and times[0] <= step:
                times.pop(0)
                prompt = [rng.randrange(1000) for _ in range(12)]
                bench.add(f"{key}:{count}", prompt, key=key, weight=weights[key], max_tokens=20)
                sent[f"{key}:{count}"] = step
                count += 1
        plan, events = bench.step()
        for name, tokens in plan:
            served[name.split(":")[0]] += tokens
        for event in events:
            key = event.id.split(":")[0]
            if event.id in sent:
                waits[key].append(step - sent.pop(event.id))
            if event.finish_reason:
                due[key].append(step + 1 + pause * (key != "noisy"))
    return served, waits


def test_tokens_are_even_by_weight_when_one_asks_for_ten_times_more():
    weights = {"a": 1.0, "b": 1.0, "c": 2.0, "noisy": 1.0}
    served, _ = closed_loops({"a": 4, "b": 4, "c": 4, "noisy": 40}, weights, steps=2000)
    shares = [served[key] / weights[key] for key in weights]
    jain = sum(shares) ** 2 / (len(shares) * sum(x * x for x in shares))
    assert jain > 0.99


def test_who_asks_for_less_than_its_share_waits_no_step_longer_beside_a_flood():
    quiet = {"a": 1, "b": 1, "c": 1, "d": 1}
    weights = {**dict.fromkeys(quiet, 1.0), "noisy": 1.0}
    _, alone = closed_loops(quiet, weights, steps=500, pause=3)
    _, beside = closed_loops({**quiet, "noisy": 10}, weights, steps=500, pause=3)
    for key in quiet:
        assert max(alone[key]) == max(beside[key]) == 0


def test_nobody_gives_way_to_what_cannot_start():
    bench = Bench(max_running=1)
    bench.adapters.absent.add("away")
    bench.add("a", [1], key="a", max_tokens=9)
    bench.step()
    bench.add("b", [2], key="b", adapters=["away"])
    bench.step()
    assert bench.scheduler.preemptions == 0


def test_rows_are_given_back_once_a_prefix_that_is_computed_is_there():
    bench = Bench(blocks=64, max_running=4)
    for i in range(4):
        bench.add(f"noisy{i}", [1, i], key="noisy", max_tokens=40)
    bench.step()
    for i in range(2):  # siblings: the second takes the prefix of the first
        bench.add(f"quiet{i}", [2] * 9, key="quiet", weight=4.0, max_tokens=40)
    plans = [sorted(name for name, _ in bench.step()[0]) for _ in range(2)]
    assert plans[0] == ["noisy0", "noisy1", "noisy2", "quiet0"]
    assert plans[1] == ["noisy0", "noisy1", "quiet0", "quiet1"]
    assert bench.scheduler.preemptions == 2


def test_who_had_its_share_is_given_rows_when_it_has_less():
    bench = Bench(max_running=2)
    bench.add("noisy0", [1], key="noisy", max_tokens=40)
    bench.add("quiet0", [2], key="quiet", max_tokens=40)
    bench.step()
    bench.add("quiet1", [3], key="quiet", adapters=["x"])
    bench.step()  # the share of its tenant is taken
    bench.scheduler.cancel("quiet0")
    bench.adapters.absent.add("x")
    bench.add("noisy1", [4], key="noisy", max_tokens=40)
    assert sorted(name for name, _ in bench.step()[0]) == ["noisy0", "noisy1"]
    bench.adapters.absent.clear()
    assert "quiet1" in {name for _ in range(3) for name, _ in bench.step()[0]}


def test_a_flood_leaves_another_tenants_prefix_where_it_is():
    bench = Bench(blocks=24)
    bench.add("first", 24, key="quiet", max_tokens=1)
    drain(bench)
    for i in range(50):
        bench.add(f"flood{i}", [90 + i] * 24, key="noisy", max_tokens=1)
        drain(bench)
    again = bench.add("again", 24, key="quiet", max_tokens=1)
    assert bench.step()[0] == [("again", 4)]
    assert again.num_cached == 20
    bench.assert_clean()


def test_anothers_cached_prompt_takes_as_long_as_a_new_one():
    """What could be timed is what is computed: all of it, in as many steps."""
    plans = {}
    for cached in ("theirs", "nobody's"):
        bench = Bench(max_step_tokens=8)
        bench.add("a", 20 if cached == "theirs" else [9] * 20, key="a")
        drain(bench)
        bench.add("b", 20, key="b")
        plans[cached] = [bench.step()[0] for _ in range(3)]
    assert plans["theirs"] == plans["nobody's"] == [[("b", 8)], [("b", 8)], [("b", 4)]]


def rows_of(bench, key):
    return sum(len(s.members) for s in bench.scheduler.running if s.request.fairness_key == key)


def test_a_tenant_has_no_more_rows_than_it_may():
    bench = Bench(blocks=64, max_running=8)
    for i in range(12):
        bench.add(f"capped{i}", [1, 2, i], key="capped", rows=2, max_tokens=5)
    bench.add("other", [1, 3], key="other", max_tokens=30)
    most, done = 0, []
    while bench.scheduler.running or len(bench.scheduler.waiting):
        done += [event.id for event in bench.step()[1] if event.finish_reason]
        most = max(most, rows_of(bench, "capped"))
    assert most == 2
    assert len(done) == 13
    bench.assert_clean()


def test_rows_of_others_are_not_left_empty():
    """Who waits behind its limit holds nobody up."""
    bench = Bench(blocks=64, max_running=4)
    for i in range(3):
        bench.add(f"capped{i}", [1, 2, i], key="capped", rows=1)
    for i in range(3):
        bench.add(f"other{i}", [1, 3, i], key="other")
    names = sorted(name for name, _ in bench.step()[0])
    assert names == ["capped0", "other0", "other1", "other2"]


def test_rows_come_back_however_an_answer_ends():
    bench = Bench(blocks=8, max_running=8)  # preempted for want of blocks, too
    for i in range(6):
        bench.add(f"capped{i}", [1, 2, i], key="capped", rows=2, max_tokens=12)
    bench.step()
    bench.scheduler.cancel("capped0")
    bench.step()
    assert rows_of(bench, "capped") == 2
    for i in range(4):
        bench.add(f"other{i}", [1, 3, i], key="other", max_tokens=12)
    drain(bench)
    assert bench.scheduler.preemptions > 0
    assert not bench.scheduler.waiting._rows
    bench.assert_clean()


def test_a_fused_request_with_more_members_than_its_tenant_may_have_runs_alone():
    bench = Bench(blocks=64, max_running=8)
    for i in range(2):
        bench.add(f"f{i}", [1, i], key="a", rows=2, members=[([2, i],), ([3, i],)])
    bench.add("plain", [1, 9], key="a", rows=2)
    assert {name for name, _ in bench.step()[0]} == {"f0"}
    assert len([e for e in drain(bench) if e.finish_reason]) == 3


def test_a_long_prompt_does_not_hold_up_another_tenants_short_one():
    bench = Bench(blocks=64, max_step_tokens=8)
    bench.add("long", 60, key="noisy")
    bench.step()
    bench.add("short", [90, 91, 92], key="quiet")
    assert bench.step()[0] == [("long", 4), ("short", 3)]


def test_long_prompts_share_a_step_by_weight():
    bench = Bench(blocks=64, max_step_tokens=8)
    bench.add("a", 60, key="a", weight=3.0)
    bench.step()
    bench.add("b", [90 + i for i in range(40)], key="b", weight=1.0)
    bench.step()
    assert [bench.step()[0] for _ in range(2)] == [[("a", 6), ("b", 2)]] * 2


def test_what_a_tenant_does_not_need_of_a_step_is_for_the_others():
    bench = Bench(blocks=64, max_step_tokens=8)
    bench.add("a", 60, key="a")
    bench.step()
    bench.add("b", [90 + i for i in range(6)], key="b")
    assert bench.step()[0] == [("a", 4), ("b", 4)]
    assert bench.step()[0] == [("a", 6), ("b", 2)]


def test_a_tenants_own_long_prompts_come_one_after_the_other():
    bench = Bench(blocks=64, max_step_tokens=8)
    bench.add("first", 20, key="a")
    bench.add("second", [90 + i for i in range(20)], key="a")
    assert [bench.step()[0] for _ in range(3)] == [
        [("first", 8)],
        [("first", 8)],
        [("first", 4), ("second", 4)],
    ]
