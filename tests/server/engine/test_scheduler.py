import random
import subprocess
import sys

import msgspec
import pytest

from turret_adapters.positions import find_reach
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
        rows=None,
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
            fairness_rows=rows,
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


def test_scheduling_imports_no_torch():
    code = "import sys, turret_server.engine.scheduler; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
