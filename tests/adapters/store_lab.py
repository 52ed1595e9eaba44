"""Real stores on the CPU, and how tests wait for their loader thread."""

import threading
import time

import pytest
import torch

from turret_adapters.components import LowRank
from turret_adapters.errors import AdapterNotFound
from turret_adapters.store import AdapterStore, StoreLimits

CPU = torch.device("cpu")
WAIT_S = 20  # a bound for a busy machine, never reached otherwise


class Woken:
    """Counts wake-ups and waits for conditions between them."""

    def __init__(self):
        self._condition = threading.Condition()
        self.count = 0

    def __call__(self):
        with self._condition:
            self.count += 1
            self._condition.notify_all()

    def wait_until(self, condition):
        """Wait for a condition that only a wake-up can make true."""
        began = time.monotonic()
        with self._condition:
            assert self._condition.wait_for(condition, WAIT_S)
        # At its end the wait looks once more, wake-up or not.
        assert time.monotonic() - began < WAIT_S


class Stores:
    """Makes stores; `close` asserts that nothing is left pinned."""

    def __init__(self, shape):
        self._shape, self._made = shape, []

    def __call__(self, max_resident=4, max_rank_rows=64, dtype=torch.float32, **limits):
        woken = Woken()
        limits = StoreLimits(max_resident=max_resident, max_rank_rows=max_rank_rows, **limits)
        store = AdapterStore(self._shape, limits, CPU, dtype, on_resident=woken)
        self._made.append(store)
        return store, woken

    def close(self):
        for store in self._made:
            assert store.num_pins == 0
            store.close()


def load(store, path, **kwargs):
    return store.load(path, **kwargs).result(WAIT_S)


def pin(store, woken, *digests):
    """Ask until it is granted, as the scheduler does at every wake-up."""
    slots = None

    def ask():
        nonlocal slots
        slots = store.try_pin(digests)
        return slots is not None

    woken.wait_until(ask)
    return slots


def settle(store):
    """Wait for the loader: a load that fails comes back after everything before it."""
    with pytest.raises(AdapterNotFound):
        load(store, "/there/is/no/such/folder")


def assert_slot_holds(store, slot, program):
    """The rows of a slot are the factors of the program."""
    bank = store.banks.low_rank
    components = [c for c in program.components if isinstance(c, LowRank)]
    for component in components:
        pool = bank._sites[component.site].pool
        first, count = int(pool.start[slot]), int(pool.count[slot])
        assert torch.equal(pool.a[first : first + count], component.a)
        assert torch.equal(pool.b[first : first + count], component.b)
    held = {site for site, pool in bank._sites.items() if pool.pool.count[slot]}
    assert held == {c.site for c in components}
