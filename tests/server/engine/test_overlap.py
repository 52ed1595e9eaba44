"""An engine that launches a step before it knows the tokens of the last: the same answers."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
import torch
from tests.server.engine.test_fusion import OTHER, SPECS, VOCAB, Bench

from turret_server.engine import draw
from turret_server.engine.messages import AdapterUse


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small are no work for two, which would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("overlap"))


class Remainders:
    """A grammar: the next token's remainder by 5 is that of the sum of all before it."""

    def __init__(self, length):
        self._left, self._sum = length, 0

    @property
    def finished(self):
        return self._left == 0

    def fill_mask(self, out):
        assert self._left > 0, "asked beyond its end"
        allowed = np.zeros(len(out) * 32, dtype=np.uint8)
        allowed[self._sum % 5 : VOCAB : 5] = 1
        out[:] = np.packbits(allowed, bitorder="little").view(np.int32)

    def accept(self, token):
        assert token % 5 == self._sum % 5
        self._left, self._sum = self._left - 1, self._sum + token
        return True


@dataclass
class Entry:
    tokens: list
    logprobs: list
    prompt_logprobs: list | None
    finish_reason: str


def traffic(served):
    """One of everything, and among them two greedy ones with equal prompts, and seeded siblings."""
    ask = served.ask
    stacked = msgspec.structs.replace(
        ask("stacked", None, "a", max_tokens=9),
        adapters=(*served.uses["a"], AdapterUse(served.uses["b"][0].digest, 0.5)),
    )
    siblings = [
        ask(f"sibling {i}", None, "b", OTHER, temperature=1.0, top_p=0.9, seed=i, max_tokens=12)
        for i in range(3)
    ]
    return [
        *(ask(f"greedy {m}", None, m, max_tokens=n) for m, n in (("base", 14), ("a", 3), ("b", 8))),
        ask("one token", None, "a", OTHER, max_tokens=1),
        stacked,
        *siblings,
        ask("sorted", None, "base", temperature=0.8, top_k=20, min_p=0.02, seed=9, max_tokens=11),
        ask("penalties", None, "a", presence_penalty=1.5, repetition_penalty=1.3, max_tokens=12),
        ask("biased", None, "b", logit_bias={7: 4.0, 8: -100.0}, logprobs=0, max_tokens=7),
        ask("prompt", None, "b", OTHER, prompt_logprobs=2, max_tokens=4),
        ask("plain", None, "base", OTHER[:9], logprobs=None, max_tokens=10),
        ask("grammar", None, "a", max_tokens=30),
        ask("drawn grammar", None, "base", OTHER, temperature=1.0, seed=4, max_tokens=6),
        ask("proxy", SPECS["proxy"], max_tokens=8),
        ask("dynamic", SPECS["dynamic"], "a", max_tokens=6),
        ask("guidance", SPECS["guidance"], temperature=0.7, seed=5, max_tokens=7),
    ]


def answers(served, requests, grammars=("grammar", "drawn grammar"), cancel=None):
    """All of it, or of who is cancelled at that step what came before."""
    engine, found = served.engine, {}
    prompts = {}
    for request in requests:
        found[request.id] = Entry([], [], None, "")
        assert engine.submit(request) is None
        if request.id in grammars:
            engine.scheduler._by_id[request.id].grammar = Remainders(9)
    for step in range(1000):
        if cancel is not None and step == cancel[0]:
            for name in cancel[1]:
                engine.cancel(name)
                assert not found[name].finish_reason
                prompts[name] = len(found[name].tokens)
        if engine.idle:
            break
        served._wake.clear()
        events = engine.step()
        if not events and not engine.scheduler.running and not engine.idle:
            served._wake.wait(timeout=30)
        for event in events:
            assert event.error is None
            entry = found[event.id]
            assert not entry.finish_reason
            entry.tokens += event.tokens
            entry.logprobs += event.logprobs or []
            entry.prompt_logprobs = event.prompt_logprobs or entry.prompt_logprobs
            entry.finish_reason = event.finish_reason or ""
    assert all(len(found[name].tokens) == count for name, count in prompts.items())
    served.assert_clean()
    return found


def assert_same(found, expected):
    for name, entry in expected.items():
        other = found[name]
        assert other.tokens == entry.tokens, name
        assert other.finish_reason == entry.finish_reason, name
        tolerance = 5e-3 if name == "dynamic" else 1e-4  # see test_fusion.py
        for own, theirs in zip(other.logprobs, entry.logprobs, strict=True):
            assert own.logprob == pytest.approx(theirs.logprob, abs=tolerance), name
            assert own.weights == pytest.approx(theirs.weights, abs=1e-2), name
        prompts = [[e and e.logprob for e in p.prompt_logprobs or []] for p in (other, entry)]
        assert prompts[0] == pytest.approx(prompts[1], abs=1e-4), name


@pytest.fixture(scope="module")
def expected(bench):
    served = bench.serve(overlap="off")
    found = answers(served, traffic(served))
    served.engine.close()
    return found


def test_the_traffic_is_worth_comparing(expected):
    assert len({tuple(entry.tokens) for entry in expected.values()}) == len(expected)
    assert expected["grammar"].finish_reason == "stop"
    assert len(expected["prompt"].prompt_logprobs) == len(OTHER)
    assert all(entry.weights for entry in expected["dynamic"].logprobs)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_step_tokens": 16},
        {"kv_block_tokens": 4, "kv_cache_bytes": 45 * 4 * 512, "max_model_len": 64},
        {"max_running": 4},
        {"max_resident_adapters": 2},
    ],
    ids=["room", "chunks", "preemption", "few rows", "few slots"],
)
def test_the_same_answers_as_in_order(bench, expected, settings):
    served = bench.serve(overlap="on", **settings)
    for _ in range(2):  # again with a filled prefix cache
        assert_same(answers(served, traffic(served)), expected)
    if "kv_block_tokens" in settings:
        assert served.engine.stats.preemptions > 0
    served.engine.close()


def test_nothing_is_read_before_it_was_waited_for(bench, expected, monkeypatch):
    """Copies hold nonsense until then, as those of a device that has not come so far."""

    class Late(draw.HostCopies):
        def __init__(self, device):
            super().__init__(device)
            self.sent, self.closed = [], False

        def send(self, x):
            assert not self.closed
            copy = torch.full_like(x, VOCAB - 1)
            self.sent.append((copy, x.clone()))
            return copy

        def close(self):
            self.closed = True

        def wait(self):
            assert self.closed
            for copy, x in self.sent:
                copy.copy_(x)

    monkeypatch.setattr("turret_server.engine.sampler.HostCopies", Late)
    served = bench.serve(overlap="on")
    assert_same(answers(served, traffic(served)), expected)
    served.engine.close()


def test_stops_end_where_they_did(bench, expected):
    """With a stop token in the middle, and the same held off by a minimum."""
    served = bench.serve(overlap="on")
    greedy = expected["greedy base"].tokens
    stop = next(t for t in greedy[3:] if greedy.count(t) == 1)
    at = greedy.index(stop) + 1
    requests = [
        served.ask("stops", stop_token_ids=(stop,), max_tokens=14),
        served.ask("goes on", stop_token_ids=(stop,), min_tokens=at, max_tokens=14),
        served.ask("beside", max_tokens=14),
    ]
    found = answers(served, requests)
    assert (found["stops"].tokens, found["stops"].finish_reason) == (greedy[:at], "stop")
    assert found["beside"].tokens == greedy
    assert found["goes on"].tokens[: at - 1] == greedy[: at - 1]
    assert stop not in found["goes on"].tokens[:at]
    served.engine.close()


@pytest.mark.parametrize("step", [1, 2, 4])
def test_cancelling_in_flight_leaves_the_others_alone(bench, expected, step):
    served = bench.serve(overlap="on")
    served.run([served.ask(f"warm {m}", None, m) for m in ("a", "b")])
    gone = ["greedy base", "penalties", "drawn grammar", "guidance", "prompt"]
    found = answers(served, traffic(served), cancel=(step, gone))
    rest = {name: entry for name, entry in expected.items() if name not in gone}
    assert_same(found, rest)
    for name in gone:
        assert found[name].tokens == expected[name].tokens[: len(found[name].tokens)]
    served.engine.close()


def test_an_adapter_that_is_unloaded_stays_for_the_step_in_flight(bench):
    served = bench.serve(overlap="on")
    engine, digest = served.engine, served.uses["a"][0].digest
    served.run([served.ask("warm", None, "a")])
    engine.submit(served.ask("x", None, "a", max_tokens=20))
    for _ in range(3):
        engine.step()
    engine.store.forget(digest)
    engine.cancel("x")
    assert engine.store.num_pins == 1
    assert not engine.idle
    assert engine.step() == []
    assert engine.store.num_pins == 0
    assert digest not in engine.store.loaded()
    assert engine.idle
    engine.close()


def test_lengths_cost_no_row_and_stops_one(bench):
    rows = {}
    for overlap in ("off", "on"):
        served = bench.serve(overlap=overlap)
        asks = [served.ask("x", max_tokens=6), served.ask("y", prompt=OTHER, max_tokens=3)]
        answer = answers(served, asks)["x"].tokens
        first = served.engine.stats.step_tokens
        answers(served, [served.ask("z", max_tokens=90, stop_token_ids=(answer[4],))])
        rows[overlap] = first, served.engine.stats.step_tokens - first
        served.engine.close()
    assert rows["on"] == (rows["off"][0], rows["off"][1] + 1)
