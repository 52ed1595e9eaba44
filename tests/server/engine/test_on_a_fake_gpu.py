"""The engine's CUDA path, on a GPU made of the host's memory: see tests/fake_gpu.

The anchor is the engine on the CPU, which the tests of the engine and of the kinds hold against
transformers and PEFT: other kernels, no graphs, no overlap, every prompt in one piece.
"""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
import torch
from tests.fake_gpu import Stream, fake_gpu
from tests.server.engine.test_fusion import OTHER, SPECS, Bench
from tests.server.engine.test_overlap import answers, assert_same

from turret_kernels import gpu
from turret_server.engine import core
from turret_server.engine.draw import HostCopies
from turret_server.engine.messages import AdapterUse
from turret_server.engine.staging import Staging
from turret_server.engine.warm_up import warm_up

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not gpu.INTERPRETED, reason="needs TRITON_INTERPRET=1"),
]
LONG = OTHER[:38]  # more than a KV block, and than a step takes
SHORT = [3, 42, 8]
NO_WAIT = {"to device", "to host", "event"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Bench(tmp_path_factory.mktemp("fake_gpu"))
    torch.set_num_threads(before)


def traffic(served):
    """One of everything: chunked prompts, stacked adapters, all of sampling, fused requests."""
    uses = served.uses

    def ask(name, *args, **sampling):
        return served.ask(name, *args, **{"max_tokens": 4, **sampling})

    half = AdapterUse(uses["b"][0].digest, 0.5)
    return [
        ask("base", logprobs=None, max_tokens=6),
        ask("a", None, "a", LONG, max_tokens=6),
        ask("b", None, "b", LONG[1:], prompt_logprobs=2),
        msgspec.structs.replace(ask("stacked", None, "a", SHORT), adapters=(*uses["a"], half)),
        ask("drawn", None, "b", SHORT, temperature=1.0, seed=3, min_p=0.01),
        ask("filtered", temperature=0.8, top_k=20, top_p=0.9, seed=9),
        ask("penalised", None, "a", presence_penalty=1.5, repetition_penalty=1.3),
        ask("biased", None, "b", logit_bias={7: 4.0, 8: -100.0}, logprobs=0),
        ask("grammar", None, "a", SHORT),
        ask("guidance", SPECS["guidance of another model"], prompt=SHORT),
        ask("dynamic", SPECS["dynamic"], "a", SHORT),
    ]


@pytest.fixture(scope="module")
def expected(bench):
    """What the CPU answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "INTERPRETED", False)
        served = bench.serve(device="cpu", overlap="off")
        found = answers(served, traffic(served))
        served.engine.close()
    return found


@pytest.fixture(scope="module")
def device(expected):
    """The GPU, which the CPU's answers do without."""
    with fake_gpu() as stream:
        yield stream


@pytest.fixture(scope="module")
def served(bench, device):
    served = bench.serve(device="cuda", max_step_tokens=24, max_running=16)
    yield served
    served.engine.close()


def logs_of_steps(served, device, requests):
    """What the host did with the device in every step."""
    logs = []

    def note():
        logs.append(Counter(device.log))
        device.log.clear()

    device.log.clear()
    served.run(requests, each_step=note)
    return logs


def replays(served):
    return sum(graph.replays for graph, _ in served.engine._runner._graphs.values())


def test_everything_together_is_what_the_cpu_answers(served, device, expected):
    """float32 sums in another order. No step waits but for the one before and its results."""
    assert served.engine.decoder.device.type == "cuda"
    assert served.engine._overlaps
    device.log.clear()
    assert_same(answers(served, traffic(served)), expected)
    assert set(device.log) == NO_WAIT


def test_again_from_graphs_and_from_the_prefix_cache(served, expected):
    names = ("base", "a", "guidance")
    before, hits = replays(served), served.engine.stats.prefix_hits
    found = answers(served, [r for r in traffic(served) if r.id in names])
    assert_same(found, {name: expected[name] for name in names})
    assert served.engine.stats.prefix_hits > hits
    assert replays(served) > before + 3


def test_warmed_up_the_base_records_nothing_more(bench, device, expected):
    served = bench.serve(device="cuda", max_running=3)
    warm_up(served.engine)
    graphs = set(served.engine._runner._graphs)
    requests = [served.ask(name, logprobs=None, max_tokens=6) for name in ("base", "beside")]
    assert served.run(requests)["base"].tokens == expected["base"].tokens
    assert set(served.engine._runner._graphs) == graphs == {1, 2, 3}
    served.engine.close()


# Copies to the device and to the host in a step: of the batch and of the sampling's settings, and
# of the tokens; for log-probabilities the rows that want them, twice, and their table.
STEADY = {
    "the base": (lambda ask: [ask("x", logprobs=None), ask("y", logprobs=None)], 2, 1),
    "log-probabilities": (lambda ask: [ask("x"), ask("y")], 4, 2),
    # Which adapters act where: their numbers and weights, and tiles for shrinking and expanding.
    "adapters": (lambda ask: [ask(m, None, m, logprobs=None) for m in ("base", "a", "b")], 4, 1),
    "filters and penalties": (
        lambda ask: [ask("x", logprobs=None, top_p=0.9, temperature=1.0, logit_bias={7: 4.0})],
        3,
        1,
    ),
    # The table of the members, rows that are no member's, and the weights that are traced.
    "fused": (lambda ask: [ask("x", SPECS["dynamic"], "a"), ask("y")], 8, 3),
}


@pytest.mark.parametrize("name", STEADY)
def test_decoding_waits_for_the_last_step_alone(served, device, name):
    """Once its graph is there, every step makes so many copies, from pinned memory or to it.

    Of the two events one says that the last batch was sent, the other that its tokens are here.
    """
    make, to_device, to_host = STEADY[name]

    def ask(name, *args, **sampling):
        return served.ask(name, *(args or (None,)), prompt=SHORT, **{"max_tokens": 5, **sampling})

    logs = logs_of_steps(served, device, make(ask))
    steady = Counter({"to device": to_device, "to host": to_host, "event": 2})
    assert logs[2:-1] == [steady] * len(logs[2:-1])
    assert len(logs) > 4
    assert logs[-1] == Counter(event=1)


@pytest.mark.parametrize(
    ("mistake", "what"),
    [
        (lambda logits: logits.max().item(), "aten._local_scalar_dense"),
        (lambda logits: logits[logits > 0], "aten.index"),
        (lambda logits: logits[:1].cpu(), "from the device"),
        (lambda logits: torch.tensor([0]).to(logits.device, non_blocking=True), "to the device"),
    ],
    ids=["item", "mask", "cpu", "pageable"],
)
def test_a_careless_wait_would_be_seen(served, device, monkeypatch, mistake, what):
    def careless(logits, shares, sample_step=core.sample_step):
        mistake(logits)
        return sample_step(logits, shares)

    monkeypatch.setattr(core, "sample_step", careless)
    logs = logs_of_steps(served, device, [served.ask("x", prompt=SHORT, max_tokens=2)])
    (wait,) = set().union(*logs) - NO_WAIT
    assert what in wait
    assert "test_on_a_fake_gpu.py" in wait


def test_a_missing_wait_would_be_seen(bench, device, monkeypatch):
    served = bench.serve(device="cuda")
    request = served.ask("x", prompt=SHORT, max_tokens=1, logprobs=None)
    with Stream().used(), monkeypatch.context() as patch:
        patch.setattr(HostCopies, "wait", lambda self: None)
        assert served.run([request])["x"].tokens == [torch.iinfo(torch.int64).max]
    with Stream().used(), monkeypatch.context() as patch:
        patch.setattr(Staging, "wait", lambda self: None)
        with pytest.raises(RuntimeError, match="filled again"):
            served.run([served.ask("y", prompt=SHORT, max_tokens=3)])
    served.engine.close()


def test_adapters_come_and_go_beside_decoding(bench, served, device, expected):
    """Into and out of their slots, which the thread that steps does not wait for."""
    store, digest = served.engine.store, served.uses["b"][0].digest

    def change():
        if digest in store.loaded():
            store.forget(digest)
        else:
            assert store.load(bench.folder / "b").result().digest == digest

    device.log.clear()
    asks = {request.id: request for request in traffic(served)}
    found = served.run([asks["base"], asks["a"]], each_step=change)
    assert set(device.log) == NO_WAIT
    if digest not in store.loaded():
        change()
    found |= served.run([asks["b"]])
    for name, answer in found.items():
        assert answer.tokens == expected[name].tokens
