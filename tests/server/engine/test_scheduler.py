import random
import subprocess
import sys

import msgspec
import pytest

from turret_adapters.positions import Positions, find_reach
from turret_server.engine.blocks import BlockPool
from turret_server.engine.messages import AdapterUse, EngineRequest, Sampling
from turret_server.engine.scheduler import Limits, Sampled, Scheduler
from turret_server.engine.sequence import Sequence

BLOCK = 4


class Adapters:
    """A store with a few slots; `absent` are not resident."""

    def __init__(self):
        self.pins, self.absent, self.failed = {}, set(), {}

    def try_pin(self, digests):
        if any(d in self.absent for d in digests):
            return None
        for d in digests:
            self.pins[d] = self.pins.get(d, 0) + 1
        return tuple(range(len(digests)))

    def unpin(self, digests):
        for d in digests:
            self.pins[d] -= 1
            assert self.pins[d] >= 0

    def failure(self, digests):
        return next((self.failed[d] for d in digests if d in self.failed), None)


class Bench:
    """A scheduler with a model that answers token 7 to everything."""

    def __init__(self, blocks=16, auxiliaries=None, **limits):
        self.now, self.adapters = 0.0, Adapters()
        self.pool = BlockPool(blocks, BLOCK)
        self.scheduler = Scheduler(
            Limits(**{"max_model_len": 64, **limits}),
            self.pool,
            self.adapters,
            lambda: self.now,
            auxiliaries,
        )

    def add(
        self,
        name,
        prompt=4,
        adapters=(),
        key="",
        weight=1.0,
        lane_weight=1.0,
        deadline=None,
        queue_s=None,
        rules=None,
        members=(),
        **sampling,
    ):
        """`members` are (prompt, adapters, model) of the others of a fused request."""
        tokens = list(range(prompt)) if isinstance(prompt, int) else prompt
        request = EngineRequest(
            id=name,
            prompt=tokens,
            sampling=Sampling(**{"max_tokens": 3, **sampling}),
            adapters=tuple(AdapterUse(a) for a in adapters),
            cache_namespace=key,
            cache_owner=key,
            fairness_key=key,
            fairness_weight=weight,
            lane="|".join(adapters),
            lane_weight=lane_weight,
            deadline_s=deadline,
            queue_s=queue_s,
        )
        self.now += 0.001
        sequence = Sequence.of(request, self.now, find_reach(tokens, rules or []))
        sequence.others = tuple(self._member(request, *member) for member in members)
        assert self.scheduler.obstacle(sequence) is None
        self.scheduler.add(sequence)
        return sequence

    def _member(self, request, prompt, adapters=(), model=""):
        uses = tuple(AdapterUse(a) for a in adapters)
        request = msgspec.structs.replace(request, prompt=prompt, adapters=uses, model=model)
        return Sequence.of(request, self.now)

    def step(self, token=7):
        shares, ended = self.scheduler.schedule()
        others = {m for s in shares for m in s.sequence.others}
        led = {s.sequence for s in shares if s.samples} - others
        for share in shares:  # members sample together
            if share.samples and share.sequence.others:
                assert set(share.sequence.others) <= {s.sequence for s in shares if s.samples}
        results = [Sampled(token if s.sequence in led else None) for s in shares]
        self.scheduler.advance(shares, dict.fromkeys(led, 0))
        plan = [(s.sequence.request.id, s.count) for s in shares]
        return plan, ended + (self.scheduler.update(shares, results) if shares else [])

    def assert_clean(self):
        assert self.pool.num_free == self.pool.num_blocks
        assert not any(self.adapters.pins.values())
        assert len(self.scheduler._table_rows) == self.scheduler.limits.max_running


def drain(bench, limit=500):
    events = []
    for _ in range(limit):
        plan, new = bench.step()
        events += new
        if not plan and not len(bench.scheduler.waiting):
            return events
    raise AssertionError("the scheduler does not come to an end")


def test_prompts_and_decodes_share_a_step():
    bench = Bench()
    bench.add("a", 4)
    assert bench.step()[0] == [("a", 4)]
    bench.add("b", [9] * 5)
    assert sorted(bench.step()[0]) == [("a", 1), ("b", 5)]


def test_a_long_prompt_is_cut_by_the_budget_and_decodes_go_first():
    bench = Bench(max_step_tokens=6)
    bench.add("a", 4)
    bench.step()
    bench.add("b", [9] * 12)
    assert bench.step()[0] == [("a", 1), ("b", 5)]
    assert bench.step()[0] == [("a", 1), ("b", 5)]


def test_max_tokens_and_stop_tokens_end_a_request():
    bench = Bench()
    bench.add("length", max_tokens=2)
    bench.add("stop", [9, 9, 9], stop_token_ids=(7,))
    events = drain(bench)
    reasons = {e.id: e.finish_reason for e in events if e.finish_reason}
    assert reasons == {"length": "length", "stop": "stop"}
    bench.assert_clean()


def test_min_tokens_outlasts_a_stop_token():
    bench = Bench()
    bench.add("a", stop_token_ids=(7,), min_tokens=2, max_tokens=9)
    assert sum(len(e.tokens) for e in drain(bench)) == 3


def test_the_context_limit_ends_a_request():
    bench = Bench(max_model_len=8)
    bench.add("a", 4, max_tokens=50)
    assert sum(len(e.tokens) for e in drain(bench)) == 4


def test_a_finished_prompt_is_reused_up_to_its_last_token():
    bench = Bench()
    bench.add("a", 8)
    drain(bench)
    again = bench.add("b", 8)
    assert bench.step()[0] == [("b", 4)]  # at least one token is computed, so one block is
    assert again.num_cached == 4
    drain(bench)
    bench.assert_clean()


def test_prefixes_are_not_shared_across_recipes_or_namespaces():
    bench = Bench()
    bench.add("base", 12)
    drain(bench)
    other = bench.add("lora", 12, adapters=["d1"])
    bench.step()
    assert other.num_cached == 0


def test_equal_prompts_at_once_are_computed_once():
    bench = Bench()
    bench.add("a", 9)
    bench.add("b", 9)
    assert bench.step()[0] == [("a", 9)]
    assert sorted(bench.step()[0]) == [("a", 1), ("b", 1)]


def test_an_absent_adapter_holds_up_nobody_else():
    bench = Bench()
    bench.adapters.absent.add("cold")
    bench.add("waits", adapters=["cold"])
    bench.add("runs", [5, 5])
    assert bench.step()[0] == [("runs", 2)]
    bench.adapters.absent.clear()
    assert ("waits", 4) in bench.step()[0]
    drain(bench)
    bench.assert_clean()


def test_a_failed_adapter_ends_its_request():
    from turret_server.engine.messages import ErrorInfo

    bench = Bench()
    bench.adapters.failed["bad"] = ErrorInfo("BadRequest", "changed on disk")
    bench.add("a", adapters=["bad"])
    _, events = bench.step()
    assert events[0].finish_reason == "error"
    assert events[0].error.what == "changed on disk"
    bench.assert_clean()


def test_preemption_recomputes_and_loses_nothing():
    bench = Bench(blocks=6)
    for i in range(4):
        bench.add(f"r{i}", [i] * 6, max_tokens=10)
    events = drain(bench)
    assert bench.scheduler.preemptions > 0
    for i in range(4):
        assert sum(len(e.tokens) for e in events if e.id == f"r{i}") == 10
    bench.assert_clean()


def test_a_long_prompt_is_not_overtaken_for_ever_by_short_ones():
    bench = Bench(blocks=16)
    bench.add("first", [1] * 12, max_tokens=9)
    bench.step()
    bench.add("long", [2] * 54)
    names = set()
    for i in range(40):
        bench.add(f"short{i}", [3, i] * 3, max_tokens=5)
        names |= {name for name, _ in bench.step()[0]}
    assert "long" in names


def test_deadlines():
    bench = Bench()
    bench.add("late", deadline=1.0, max_tokens=60)
    bench.step()
    bench.now += 2
    _, events = bench.step()
    assert [e.finish_reason for e in events] == ["deadline"]
    bench.assert_clean()


def test_cancel_in_every_state():
    bench = Bench(max_running=1)
    bench.add("running", max_tokens=60)
    bench.add("waiting", [3, 3])
    bench.step()
    for name in ("waiting", "running", "unknown"):
        bench.scheduler.cancel(name)
    bench.assert_clean()
    assert not len(bench.scheduler.waiting)


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


def closed_loops(workers, weights, *, steps, rows=8, pause=0):
    """Workers of each tenant that ask again and again; tokens computed, and steps waited."""
    bench = Bench(blocks=256, max_running=rows, max_step_tokens=64)
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


def test_a_request_that_does_not_start_in_time_is_told_so():
    bench = Bench(max_running=1)
    bench.add("runs", queue_s=1.0, max_tokens=60)
    bench.step()
    bench.add("waits", [2], queue_s=1.0)
    bench.now += 2
    _, events = bench.step()
    assert [(e.id, e.error.kind) for e in events if e.finish_reason] == [
        ("waits", "ServerOverloaded")
    ]
    drain(bench)
    bench.assert_clean()


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


@pytest.mark.parametrize("seed", range(8))
def test_random_traffic_returns_everything(seed):
    rng = random.Random(seed)
    bench = Bench(blocks=27, max_running=5, max_step_tokens=7)
    for i in range(120):
        if rng.random() < 0.3:
            bench.add(
                f"r{i}",
                [rng.randrange(3) for _ in range(rng.randrange(1, 24))],
                adapters=rng.sample(["x", "y", "z"], rng.randrange(3)),
                key=rng.choice("ab"),
                max_tokens=rng.randrange(1, 20),
                deadline=rng.choice([None, 0.5]),
                queue_s=rng.choice([None, 0.3]),
                members=[
                    ([rng.randrange(3)] * rng.randrange(1, 12), rng.sample(["x", "y"], 1))
                    for _ in range(rng.choice([0, 0, 1, 2]))
                ],
            )
        if rng.random() < 0.1:
            bench.scheduler.cancel(f"r{rng.randrange(i + 1)}")
        bench.adapters.absent = {"x"} if rng.random() < 0.2 else set()
        bench.now += rng.random() / 10
        bench.step()
    bench.adapters.absent = set()
    drain(bench)
    bench.assert_clean()


SOFT = [(None, 6)]  # virtual tokens: a block and a half


def test_virtual_tokens_are_computed_before_the_prompt_and_found_again():
    bench = Bench(max_step_tokens=4)
    bench.add("a", [50, 51, 52, 53], adapters=["soft"], rules=SOFT)
    assert [bench.step()[0] for _ in range(4)] == [[("a", 4)], [("a", 4)], [("a", 2)], [("a", 1)]]
    drain(bench)
    again = bench.add("b", [60, 61, 62], adapters=["soft"], rules=SOFT)
    assert bench.step()[0] == [("b", 4)]  # 9 tokens, of which the first block was found
    assert again.num_cached == 0  # no token of the prompt was
    same = bench.add("c", [50, 51, 52, 53], adapters=["soft"], rules=SOFT)
    drain(bench)
    assert same.num_cached == 2  # two blocks, less the virtual tokens
    assert (bench.scheduler.prefix_queries, bench.scheduler.prefix_hits) == (11, 2)
    bench.assert_clean()


def test_virtual_tokens_alias_neither_other_adapters_nor_the_base():
    bench = Bench()
    prompt = [50, 51, 52, 53, 54, 55]
    bench.add("a", prompt, adapters=["soft"], rules=SOFT)
    drain(bench)
    for other in (
        bench.add("base", prompt),
        bench.add("soft 2", prompt, adapters=["soft 2"], rules=SOFT),
        bench.add("both", prompt, adapters=["soft", "lora"], rules=[*SOFT, (None, 0)]),
    ):
        found = bench.pool.match(keys(bench, other))
        assert found == []
    drain(bench)


def test_virtual_tokens_limit_the_context_and_not_the_answer():
    bench = Bench(max_model_len=12)
    bench.add("a", 3, adapters=["soft"], rules=SOFT, max_tokens=50)
    events = drain(bench)
    assert sum(len(e.tokens) for e in events) == 3
    assert events[-1].finish_reason == "length"
    bench.add("b", 3, adapters=["soft"], rules=SOFT, max_tokens=2)
    assert sum(len(e.tokens) for e in drain(bench)) == 2


def test_preempted_virtual_tokens_are_computed_again():
    bench = Bench(blocks=6, max_model_len=24)
    bench.add("a", [1, 2], adapters=["soft"], rules=SOFT, max_tokens=14)
    events = bench.step()[1]
    bench.add("b", [3, 4], adapters=["soft 2"], rules=SOFT, max_tokens=14)
    events += drain(bench)
    assert bench.scheduler.preemptions > 0
    for name in "ab":
        assert sum(len(e.tokens) for e in events if e.id == name) == 14
    bench.assert_clean()


def keys(bench, sequence):
    sequence.extend_keys(len(sequence.tokens) // BLOCK, BLOCK)
    return sequence.block_keys


INVOKED = [(Positions(invocation=(8,)), 0)]


def test_blocks_before_the_invocation_are_the_base_s_both_ways():
    prompt = [*range(8), 8, 9, 10, 11, 12]
    for first, second in (("base", "invoked"), ("invoked", "base")):
        bench = Bench()
        how = {"base": {}, "invoked": {"adapters": ["alora"], "rules": INVOKED}}
        bench.add(first, prompt, **how[first])
        drain(bench)
        other = bench.add(second, prompt, **how[second])
        bench.step()
        assert other.num_cached == 8  # the block of the invocation is no one's but its own
        drain(bench)
        again = bench.add("again", prompt, **how[second])
        bench.step()
        assert again.num_cached == 12


def test_an_invocation_that_moves_on_shares_what_lies_before():
    """The second turn of a conversation: the first invocation is no longer the last."""
    bench = Bench()
    prompt = [*range(8), 8, 9, 10, 11]
    bench.add("first", [*prompt, 12], adapters=["alora"], rules=INVOKED)
    drain(bench)
    later = [*prompt, 20, 21, 22, 8, 1, 2]
    second = bench.add("second", later, adapters=["alora"], rules=INVOKED)
    bench.step()
    assert second.num_cached == 8  # the third block was computed with the adapter on it


def test_the_last_positions_of_a_prompt_never_alias():
    bench = Bench()
    rules = [(Positions(last=3), 0)]
    bench.add("a", [*range(12), 12], adapters=["reft"], rules=rules)
    drain(bench)
    longer = bench.add("b", [*range(12), 12, 13, 14, 15], adapters=["reft"], rules=rules)
    bench.step()
    assert longer.num_cached == 8  # block 2 of the first had the adapter on two of its positions
    base = bench.add("c", [*range(12), 12])
    drain(bench)
    assert base.num_cached in (8, 12)
    third = bench.add("d", [*range(12), 12], adapters=["reft"], rules=rules)
    bench.step()
    assert third.num_cached == 12


def test_scheduling_imports_no_torch():
    code = "import sys, turret_server.engine.scheduler; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
