"""Adapters that an operator wants resident, and recipes that must get their turn beside them."""

import time

import pytest
from tests.adapters.store_lab import assert_slot_holds, load, pin, settle

from turret_adapters.errors import AdapterNotFound, AdapterUnsupported


def digests_of(store, folders, *indices):
    return [load(store, folders[i]).digest for i in indices]


def test_a_held_adapter_becomes_resident_and_stays(lab, shape, folders, make):
    store, woken = make(max_resident=2)
    a, b, c, d = digests_of(store, folders, 0, 1, 2, 3)
    held = next(digest for digest in (a, b, c, d) if digest not in store.resident())
    store.hold([held])
    woken.wait_until(lambda: held in store.resident())
    for digest in {a, b, c, d} - {held}:  # one slot is left for all others
        pin(store, woken, digest)
        assert held in store.resident()
        store.unpin([digest])
    (slot,) = store.try_pin([held])
    index = [a, b, c, d].index(held)
    assert_slot_holds(store, slot, lab.compile_folder(folders[index], shape))
    store.unpin([held])


def test_a_busy_adapter_makes_room_for_a_held_one(folders, make):
    store, woken = make(max_resident=1)
    a, b = digests_of(store, folders, 0, 1)
    pin(store, woken, a)
    store.hold([b])
    settle(store)
    assert store.resident() == [a]  # no request is stopped for it
    store.unpin([a])
    woken.wait_until(lambda: store.resident() == [b])


def test_what_is_no_longer_held_may_leave(folders, make):
    store, woken = make(max_resident=1)
    a, b = digests_of(store, folders, 0, 1)
    store.hold([a])
    woken.wait_until(lambda: store.resident() == [a])
    store.hold([])
    pin(store, woken, b)
    store.unpin([b])


def test_more_than_fit_are_refused_and_nothing_changes(folders, make):
    store, woken = make(max_resident=2, max_rank_rows=14)
    a, b, c, large = digests_of(store, folders, 0, 1, 2, 5)
    store.hold([a])
    with pytest.raises(AdapterUnsupported, match=r"3 adapters cannot be pinned.*2 slots"):
        store.hold([a, b, c])
    with pytest.raises(AdapterUnsupported, match=r"2 adapters cannot be pinned.*16 rank rows"):
        store.hold([b, large])
    with pytest.raises(AdapterNotFound):
        store.hold(["0" * 64])
    with pytest.raises(AdapterUnsupported, match="beside 1 that are pinned"):
        store.check([b, c])  # `a` is still held
    pin(store, woken, b)
    store.unpin([b])


def test_a_recipe_that_does_not_fit_beside_the_held_is_refused_at_once(folders, make):
    store, _ = make(max_resident=2, max_rank_rows=14)
    a, b, c, large = digests_of(store, folders, 0, 1, 2, 5)
    store.check([b, c])
    store.hold([a])
    with pytest.raises(AdapterUnsupported, match=r"3, and there are 2 slots.*Unpin some"):
        store.check([b, c])
    store.check([a, b])
    store.check([large])
    store.hold([b])
    with pytest.raises(AdapterUnsupported, match="16 rank rows"):
        store.check([large])
    store.forget(b)
    store.check([large])


def test_a_recipe_that_waits_hears_of_a_hold_that_leaves_it_no_room(folders, make):
    store, woken = make(max_resident=2)
    a, b, c = digests_of(store, folders, 0, 1, 2)
    pin(store, woken, a)
    assert store.try_pin([b, c]) is None
    assert store.obstacle([b, c]) is None
    store.hold([a])
    assert isinstance(store.obstacle([b, c]), AdapterUnsupported)
    assert store.try_pin([b, c]) is None
    pin(store, woken, b)  # it does not stand in the way of others
    store.unpin([a, b])


def test_a_held_adapter_that_cannot_be_read_blocks_nobody(folders, make, monkeypatch):
    store, woken = make(max_resident=1)
    a, b = digests_of(store, folders, 0, 1)
    pin(store, woken, a)
    put = store.banks.put
    monkeypatch.setattr(store.banks, "put", lambda *_: 1 / 0)
    store.hold([b])
    store.unpin([a])
    woken.wait_until(lambda: store.failed(b) is not None)
    monkeypatch.setattr(store.banks, "put", put)
    store.hold([])
    pin(store, woken, a)
    store.unpin([a])


@pytest.mark.parametrize("hold", [False, True])
def test_room_in_pieces_is_put_together(lab, shape, folders, make, hold):
    """4 rows in the middle of 16 leave 6 and 6: enough for 12, but not in one piece."""
    store, woken = make(max_rank_rows=16)
    small, middle, large = digests_of(store, folders, 2, 1, 5)  # ranks 6, 4, 12
    pin(store, woken, small)
    pin(store, woken, middle)
    store.unpin([small, middle])
    if hold:
        store.hold([middle])
    slots = pin(store, woken, middle, large)
    for slot, index in zip(slots, (1, 5), strict=True):
        assert_slot_holds(store, slot, lab.compile_folder(folders[index], shape))
    store.unpin([middle, large])


def test_room_in_pieces_around_a_running_request_waits_for_it(folders, make):
    store, woken = make(max_rank_rows=16)
    small, middle, large = digests_of(store, folders, 2, 1, 5)
    pin(store, woken, small)
    slots = pin(store, woken, middle)
    store.unpin([small])
    assert store.try_pin([middle, large]) is None
    for _ in range(20):
        assert store.try_pin([middle, large]) is None
        assert store.try_pin([middle]) == slots  # it stays where it is
        store.unpin([middle])
        time.sleep(0.005)
    store.unpin([middle])
    pin(store, woken, middle, large)
    store.unpin([middle, large])
