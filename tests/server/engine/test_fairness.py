"""The queue by itself: whose turn it is."""

from __future__ import annotations

from turret_server.engine.fairness import FairQueue
from turret_server.engine.messages import EngineRequest, Sampling
from turret_server.engine.sequence import Sequence


def waiting(queue, key, lane=""):
    """A request that has joined the queue."""
    request = EngineRequest(
        id=key, prompt=[1], sampling=Sampling(), fairness_key=key, lane=lane, fairness_weight=1.0
    )
    sequence = Sequence.of(request, 0.0)
    queue.push(sequence)
    return sequence


def serve(queue, number, tokens):
    """Keys of the next so many, each of which is charged."""
    served = []
    for _ in range(number):
        turns = queue.turns()
        sequence = next(turns)
        queue.remove(sequence)
        queue.charge(sequence.request, tokens)
        turns.close()
        served.append(sequence.request.fairness_key)
    return "".join(served)


def test_leaving_the_queue_and_coming_back_earns_no_credit():
    queue = FairQueue()
    left = waiting(queue, "b")
    for _ in range(4):
        last = waiting(queue, "a")
    queue.remove(left)  # cancelled
    queue.charge(last.request, 100)
    for _ in range(4):
        waiting(queue, "b")
    assert serve(queue, 8, tokens=10) in ("abababab", "babababa")


def test_who_sends_and_cancels_again_and_again_leaves_nothing_behind():
    queue = FairQueue()
    waiting(queue, "a")
    for i in range(1000):
        queue.charge(waiting(queue, "a").request, 1)
        sequence = waiting(queue, "b", lane=f"{i % 2}")
        queue.charge(sequence.request, 2)
        queue.remove(sequence)
    tenants = queue._tenants
    assert len(tenants._heap) <= 2
    assert len(tenants.named("b").lanes._heap) <= 2
