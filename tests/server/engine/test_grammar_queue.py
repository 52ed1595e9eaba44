import threading

from turret_server.engine.grammar_queue import GrammarQueue
from turret_server.engine.messages import EngineRequest, Sampling
from turret_server.engine.sequence import Sequence
from turret_server.errors import BadRequest


class Compiler:
    def __init__(self):
        self.go = threading.Event()

    def matcher(self, grammar):
        assert self.go.wait(5)
        if grammar == "bad":
            raise BadRequest("the grammar cannot be used", "it is bad")
        return f"matcher of {grammar}"


def run(*names):
    compiler, woken = Compiler(), threading.Semaphore(0)
    pending = GrammarQueue(lambda: compiler, woken.release)
    sequences = [
        Sequence(EngineRequest(id=n, prompt=[1], sampling=Sampling(grammar=n)), [1], 0.0)
        for n in names
    ]
    for sequence in sequences:
        pending.put(sequence)
    return compiler, woken, pending, sequences


def finish(compiler, woken, count):
    compiler.go.set()
    for _ in range(count):
        assert woken.acquire(timeout=5)


def test_put_does_not_wait_and_take_brings_the_matcher():
    compiler, woken, pending, (sequence,) = run("good")
    assert list(pending.take()) == []
    finish(compiler, woken, 1)
    assert list(pending.take()) == [(sequence, None)]
    assert sequence.grammar == "matcher of good"
    assert list(pending.take()) == []


def test_a_refused_grammar_comes_back_as_its_error():
    compiler, woken, pending, (sequence,) = run("bad")
    finish(compiler, woken, 1)
    [(found, error)] = pending.take()
    assert found is sequence
    assert (error.kind, error.why) == ("BadRequest", "it is bad")


def test_a_cancelled_sequence_never_comes_back():
    compiler, woken, pending, (_, second) = run("first", "second")
    assert pending.cancel("first")
    assert not pending.cancel("first")
    finish(compiler, woken, 2)
    assert [s for s, _ in pending.take()] == [second]
