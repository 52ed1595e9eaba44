"""Copies to the host of a GPU's tensors: its events and pinned memory are stood in for here."""

import pytest
import torch

from turret_server.engine.draw import HostCopies


@pytest.fixture
def did(monkeypatch):
    """What is asked of the GPU, in order."""
    did = []

    class Event:
        def record(self):
            did.append("record")

        def synchronize(self):
            did.append("wait")

    class Memory(torch.Tensor):
        def copy_(self, x, non_blocking=False):
            did.append("copy" if non_blocking else "copy and wait")
            return super().copy_(x)

    empty = torch.empty

    def pinned(shape, dtype, pin_memory):
        assert pin_memory
        return empty(shape, dtype=dtype).as_subclass(Memory)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", pinned)
    return did


def test_all_copies_are_waited_for_at_once(did):
    copies = HostCopies(torch.device("cuda"))
    tokens, table = torch.tensor([3, 1]), torch.ones(2, 5, dtype=torch.float64)
    sent = copies.send(tokens), copies.send(table)
    copies.close()
    assert did == ["copy", "copy", "record"]
    copies.wait()
    assert did[3:] == ["wait"]
    for copy, x in zip(sent, (tokens, table), strict=True):
        assert copy.dtype == x.dtype
        assert copy.tolist() == x.tolist()


def test_a_step_that_sends_nothing_is_waited_for_too(did):
    """Its adapters are held until it is done."""
    copies = HostCopies(torch.device("cuda"))
    copies.close()
    copies.wait()
    assert did == ["record", "wait"]


def test_on_a_cpu_there_is_nothing_to_copy(did):
    copies = HostCopies(torch.device("cpu"))
    tokens = torch.tensor([3, 1])
    assert copies.send(tokens) is tokens
    copies.close()
    copies.wait()
    assert did == []
