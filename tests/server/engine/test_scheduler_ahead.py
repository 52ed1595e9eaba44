"""Steps scheduled before the tokens of the one before them are known.

The device is a dictionary of cache places. A place holds a hash of its token and of the place
before it, which a row looks up through the sequence's blocks when its step is launched: a block
that changed hands too early, a wrong token or position shows in every token after it.
"""

from __future__ import annotations

import random
import zlib

import pytest
from tests.server.engine.test_scheduler import BLOCK, Bench

from turret_server.engine.scheduler import Sampled


def chain(before, token):
    return zlib.crc32(token.to_bytes(8, "little"), before)


def root(sequence):
    return zlib.crc32("|".join(sequence.recipe).encode())


def answer(*chains):
    return 10 + sum(chains) % 50


def alone(prompt, adapters=()):
    """The answer's tokens, whose end is the caller's business."""
    sequence = Bench().add("a", prompt, adapters=adapters, max_tokens=20)
    return expected(sequence)[0]


class Ahead(Bench):
    """A scheduler whose steps are launched before the last one's tokens are known.

    Args:
        overlap: whether they are.
    """

    def __init__(self, overlap=True, **limits):
        super().__init__(**limits)
        self.overlap = overlap
        self.places = {}
        self.drawn, self.in_flight = [], None
        self.launched = []  # per step, (id, first token, tokens)

    def step(self):
        shares, events = self.scheduler.schedule()
        ends = self.launch(shares)
        self.launched.append([(s.sequence.request.id, s.start, s.count) for s in shares])
        events += self.finish()
        if shares:
            self.draw(shares, ends)
            if not self.overlap or not self.scheduler.running:
                events += self.finish()
        return self.launched[-1], events

    def launch(self, shares):
        """The hash that each share ends with."""
        size, ends = self.pool.block_tokens, []
        for share in shares:
            sequence = share.sequence
            tokens = list(sequence.tokens)
            if sequence.draw_row >= 0:
                assert tokens[-1] == 0
                tokens[-1] = self.drawn[sequence.draw_row]
            place = [b * size + o for b in sequence.blocks for o in range(size)]
            last = self.places[place[share.start - 1]] if share.start else root(sequence)
            for i in range(share.start, share.start + share.count):
                last = self.places[place[i]] = chain(last, tokens[i])
            ends.append(last)
        return ends

    def draw(self, shares, ends):
        running = [i for i, s in enumerate(shares) if s.sequence.is_running and s.samples]
        end = {shares[i].sequence: ends[i] for i in running}
        followers = {member for sequence in end for member in sequence.others}
        which = {shares[i].sequence: i for i in running if shares[i].sequence not in followers}
        self.drawn = [answer(*(end[m] for m in lead.members)) for lead in which]
        results = [Sampled() for _ in shares]
        for i, token in zip(which.values(), self.drawn, strict=True):
            results[i] = Sampled(token)
        self.scheduler.advance(shares, {lead: row for row, lead in enumerate(which)})
        self.in_flight = shares, results

    def finish(self):
        if self.in_flight is None:
            return []
        (shares, results), self.in_flight = self.in_flight, None
        return self.scheduler.update(shares, results)

    def run(self, limit=1000):
        events = []
        for _ in range(limit):
            events += self.step()[1]
            if not self.scheduler.running and not len(self.scheduler.waiting):
                self.finish()
                return events
        raise AssertionError("the scheduler does not come to an end")


def expected(sequence):
    """What one sequence alone would be answered, and why it ends."""
    sampling = sequence.request.sampling
    chains = []
    for member in sequence.members:
        last = root(member)
        for token in member.tokens[: member.num_prompt]:
            last = chain(last, token)
        chains.append(last)
    tokens = []
    longest = max(member.num_prompt for member in sequence.members)
    while True:
        token = answer(*chains)
        tokens.append(token)
        if token in sampling.stop_token_ids and len(tokens) > sampling.min_tokens:
            return tokens, "stop"
        if len(tokens) >= sampling.max_tokens or longest + len(tokens) >= 64:
            return tokens, "length"
        chains = [chain(last, token) for last in chains]


def collect(events, sequences):
    tokens = {name: [] for name in sequences}
    reasons = {}
    for event in events:
        assert event.id not in reasons, "an event after the last"
        tokens[event.id] += event.tokens
        if event.finish_reason:
            reasons[event.id] = event.finish_reason
    return tokens, reasons


@pytest.mark.parametrize("seed", range(10))
def test_random_traffic_is_answered_as_if_alone(seed):
    rng = random.Random(seed)
    bench = Ahead(blocks=rng.choice([27, 60]), max_running=5, max_step_tokens=rng.choice([7, 30]))
    sequences, events, cancelled = {}, [], set()
    for i in range(150):
        if rng.random() < 0.3:
            members = [
                ([rng.randrange(3)] * rng.randrange(1, 12), rng.sample(["x", "y"], 1))
                for _ in range(rng.choice([0, 0, 0, 1, 2]))
            ]
            sequences[f"r{i}"] = bench.add(
                f"r{i}",
                [rng.randrange(2) for _ in range(rng.randrange(1, 24))],
                adapters=rng.sample(["x", "y", "z"], rng.randrange(3)),
                max_tokens=rng.randrange(1, 20),
                key=rng.choice(["noisy", "noisy", "noisy", "quiet"]),  # who may be given way to
                deadline=rng.choice([None, None, 0.5]),
                members=members,
                stop_token_ids=tuple(rng.sample(range(10, 60), rng.choice([0, 6]))),
                min_tokens=rng.choice([0, 4]),
            )
        if sequences and rng.random() < 0.1:
            name = rng.choice(list(sequences))
            bench.scheduler.cancel(name)
            cancelled.add(name)
        bench.adapters.absent = {"x"} if rng.random() < 0.2 else set()
        bench.now += rng.random() / 10
        events += bench.step()[1]
    bench.adapters.absent = set()
    events += bench.run()
    bench.assert_clean()
    tokens, reasons = collect(events, sequences)
    for name, sequence in sequences.items():
        whole, reason = expected(sequence)
        if reasons.get(name) in ("stop", "length"):
            assert (tokens[name], reasons[name]) == (whole, reason)
        else:
            assert reasons.get(name) == "deadline" or name in cancelled
            assert tokens[name] == whole[: len(tokens[name])]
    assert sum(reason == "stop" for reason in reasons.values()) > 2


def test_the_simulation_sees_a_block_that_is_overwritten():
    bench = Ahead()
    sequence = bench.add("a", 6, max_tokens=6)
    bench.step()
    bench.places[sequence.blocks[1] * BLOCK + 1] += 1
    tokens, _ = collect(bench.run(), ["a"])
    assert tokens["a"][0] == expected(sequence)[0][0]
    assert tokens["a"] != expected(sequence)[0]


def test_no_step_is_made_beyond_a_length():
    for limits in ({}, {"max_model_len": 7}):
        bench = Ahead(**limits)
        bench.add("a", 4, max_tokens=3)
        bench.add("b", [9] * 3, max_tokens=2)
        bench.run()
        plans = [plan for plan in bench.launched if plan]
        assert [len(plan) for plan in plans] == [2, 2, 1]


def test_a_stop_costs_one_row_that_nobody_reads():
    plans = {}
    for overlap in (False, True):
        bench = Ahead(overlap)
        bench.add("a", 4, max_tokens=9, stop_token_ids=(alone(4)[3],))
        events = bench.run()
        assert (sum(len(e.tokens) for e in events), events[-1].finish_reason) == (4, "stop")
        plans[overlap] = [plan for plan in bench.launched if plan]
        bench.assert_clean()
    assert plans[True] == [*plans[False], [("a", 7, 1)]]


def test_adapters_stay_pinned_until_no_step_reads_them():
    bench = Ahead()
    bench.add("a", 4, adapters=["x"], max_tokens=9)
    bench.add("b", [8], adapters=["y"], max_tokens=9)
    bench.step()
    bench.scheduler.cancel("a")
    assert bench.adapters.pins == {"x": 1, "y": 1}  # the step in flight has its row
    bench.step()
    assert bench.adapters.pins == {"x": 0, "y": 1}
    bench.run()
    bench.assert_clean()


def test_the_adapters_of_a_row_that_nobody_reads_outlast_it():
    bench = Ahead()
    bench.add("b", [8], max_tokens=9)
    bench.add("a", 4, adapters=["x"], max_tokens=9, stop_token_ids=(alone(4, ["x"])[1],))
    while "a" in bench.scheduler._by_id:
        bench.step()
    assert "a" in {name for name, *_ in bench.launched[-1]}
    assert bench.adapters.pins == {"x": 1}
    bench.step()
    assert bench.adapters.pins == {"x": 0}


def test_a_preempted_sequence_gets_the_token_in_flight():
    bench = Ahead(blocks=6)
    sequences = {f"r{i}": bench.add(f"r{i}", [i] * 6, max_tokens=10) for i in range(4)}
    events, met = [], False
    while bench.scheduler.running or len(bench.scheduler.waiting):
        shares, ended = bench.scheduler.schedule()
        met |= any(s.draw_row >= 0 and not s.is_running for s in sequences.values())
        ends = bench.launch(shares)
        events += ended + bench.finish()
        if shares:
            bench.draw(shares, ends)
    bench.finish()
    assert met
    tokens, reasons = collect(events, sequences)
    for name, sequence in sequences.items():
        assert (tokens[name], reasons[name]) == expected(sequence)
    bench.assert_clean()
