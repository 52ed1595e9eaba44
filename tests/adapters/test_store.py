"""Load, pin, evict, forget: with a real loader thread, and nothing left behind."""

import os
import random
import shutil
import time
from dataclasses import replace

import pytest
import torch
from tests.adapters.store_lab import CPU, WAIT_S, assert_slot_holds, load, pin, settle

from turret_adapters.banks.low_rank import LowRankBank
from turret_adapters.banks.ternary import TernaryBank
from turret_adapters.errors import (
    AdapterChanged,
    AdapterError,
    AdapterMalformed,
    AdapterNotFound,
    AdapterUnsupported,
)
from turret_adapters.spec import Module, Site
from turret_adapters.store import AdapterStore, StoreLimits


def test_loading_tells_what_it_is_and_warms_it(lab, shape, folders, make):
    store, woken = make()
    loaded = load(store, folders[1])
    assert (loaded.kind, loaded.rank, loaded.targets) == ("lora", 4, ("q_proj", "v_proj"))
    assert loaded.num_bytes == 4 * loaded.num_parameters
    woken.wait_until(lambda: store.resident() == [loaded.digest])
    (slot,) = store.try_pin([loaded.digest])
    assert_slot_holds(store, slot, lab.compile_folder(folders[1], shape))
    store.unpin([loaded.digest])
    assert store.host_bytes == loaded.num_bytes


def test_what_rank_rows_may_take(shape):
    """The pools that the banks make at every linear of the layers, without scales."""
    shape = replace(shape, dims={Module.Q: (256, 512), Module.DOWN: (768, 256)})
    sites = [site for site in shape.sites() if site.layer >= 0]
    slots = torch.zeros(3, 2, dtype=torch.int32)
    ordinary = LowRankBank(shape, 2, 32, CPU, torch.bfloat16)
    pools = [ordinary.make_pool(site, 32, slots) for site in sites]
    most = sum(pool.a.nbytes + pool.b.nbytes for pool in pools)
    assert StoreLimits(max_rank_rows=32).pool_bytes(shape, torch.bfloat16) == most
    ternary = TernaryBank(shape, 2, 64, CPU)
    pools = [ternary.make_pool(site, 64, slots) for site in sites]
    most += sum(pool.a.nbytes + pool.b.nbytes for pool in pools)
    limits = StoreLimits(max_rank_rows=32, max_ternary_rows=64)
    assert limits.pool_bytes(shape, torch.bfloat16) == most


def test_the_served_dtype_halves_the_bytes(folders, make):
    store, _ = make(dtype=torch.bfloat16)
    loaded = load(store, folders[1])
    assert loaded.num_bytes == 2 * loaded.num_parameters


def test_float16_that_overflows_is_refused(lab, folder, make):
    lab.edit_tensors(folder, lambda t: {k: v * 1e6 for k, v in t.items()})
    store, _ = make(dtype=torch.float16)
    with pytest.raises(AdapterMalformed, match="range of float16"):
        load(store, folder)


def test_the_same_content_is_one_adapter(folders, make, tmp_path):
    store, _ = make()
    first = load(store, folders[0])
    copy = shutil.copytree(folders[0], tmp_path / "copy")
    assert load(store, copy) == first
    assert store.loaded() == [first.digest]


def test_the_least_recently_used_goes_and_the_pinned_stay(folders, make):
    store, woken = make(max_resident=2)
    a, b, c = (load(store, folders[i]).digest for i in range(3))
    pin(store, woken, a)
    pin(store, woken, b)
    store.unpin([a, b])
    pin(store, woken, a)  # used last, and pinned
    pin(store, woken, c)
    assert sorted(store.resident()) == sorted([a, c])
    assert store.try_pin([b]) is None  # both slots are pinned
    store.unpin([c])
    pin(store, woken, b)
    assert sorted(store.resident()) == sorted([a, b])
    store.unpin([a, b])


def test_rows_run_out_before_slots(lab, shape, folders, make):
    store, woken = make(max_rank_rows=14)
    digests = [load(store, path).digest for path in folders]
    settle(store)
    assert set(store.resident()) == set(digests[:3])  # 2 + 4 + 6 rows
    (slot,) = pin(store, woken, digests[5])  # 12 rows: all others go
    assert store.resident() == [digests[5]]
    assert_slot_holds(store, slot, lab.compile_folder(folders[5], shape))
    assert store.try_pin([digests[1]]) is None
    store.unpin([digests[5]])
    pin(store, woken, digests[1])
    store.unpin([digests[1]])


def test_a_recipe_is_pinned_as_a_whole(folders, make):
    store, woken = make(max_resident=3)
    a, b, c, d = (load(store, folders[i]).digest for i in range(4))
    slots = pin(store, woken, a, b, c)
    assert len(set(slots)) == 3
    assert store.try_pin([a, d]) is None
    assert store.num_pins == 3
    store.unpin([a, b, c])
    pin(store, woken, a, d)
    store.unpin([a, d])


def test_recipes_that_need_all_slots_take_turns(folders, make):
    """Neither evicts what the other has just been given: both run."""
    store, _ = make(max_resident=2)
    digests = [load(store, folders[i]).digest for i in range(4)]
    recipes = [digests[:2], digests[2:]]
    runs = [0, 0]

    def step():
        for i, recipe in enumerate(recipes):
            if store.try_pin(recipe) is not None:
                store.unpin(recipe)
                runs[i] += 1
        return min(runs) >= 3

    deadline = time.monotonic() + WAIT_S
    while not step():
        assert time.monotonic() < deadline, runs
        time.sleep(0.001)


def test_a_busy_adapter_does_not_starve_another(folders, make):
    """It is pinned again in the very step in which it was unpinned, yet the other gets its turn."""
    store, woken = make(max_resident=1)
    busy, other = load(store, folders[0]).digest, load(store, folders[1]).digest
    pin(store, woken, busy)
    held, deadline = [busy], time.monotonic() + WAIT_S
    while store.try_pin([other]) is None:
        if held:
            store.unpin(held)
        held = [busy] if store.try_pin([busy]) else []
        assert time.monotonic() < deadline
        time.sleep(0.001)
    store.unpin([other, *held])


def test_waiting_for_room_is_no_work(folders, make, monkeypatch):
    store, woken = make(max_resident=1)
    a, b = load(store, folders[0]).digest, load(store, folders[1]).digest
    pin(store, woken, a)
    calls = []
    records = store._residency.records
    evict = records.evict
    monkeypatch.setattr(records, "evict", lambda p: calls.append(p) or evict(p))
    assert store.try_pin([b]) is None
    time.sleep(0.1)
    assert store.try_pin([b]) is None  # the engine goes on asking at every step
    time.sleep(0.1)
    assert len(calls) == 1
    store.unpin([a])
    pin(store, woken, b)
    store.unpin([b])


def test_check_refuses_what_can_never_run(folders, make):
    store, _ = make(max_resident=2, max_rank_rows=14)
    small, large = load(store, folders[0]).digest, load(store, folders[5]).digest
    store.check([small, large])
    with pytest.raises(AdapterUnsupported, match="--adapter-rank-rows 24"):
        store.check([large, large])
    with pytest.raises(AdapterUnsupported, match="--max-resident-adapters 3"):
        store.check([small, small, small])
    with pytest.raises(AdapterNotFound):
        store.check([small, "0" * 64])


def test_an_adapter_that_never_fits_is_refused_at_load(folders, make):
    store, _ = make(max_rank_rows=8)
    with pytest.raises(AdapterUnsupported, match="--adapter-rank-rows 12"):
        load(store, folders[5])
    assert store.loaded() == []


class TestDigest:
    def test_the_content_that_is_asked_for(self, folders, make):
        store, _ = make()
        digest = load(store, folders[0]).digest
        store.forget(digest)
        assert load(store, folders[0], digest=digest).digest == digest
        assert load(store, folders[0], digest=digest).digest == digest  # it is loaded already

    def test_other_content_is_refused_and_both_digests_are_named(self, folders, make):
        store, _ = make()
        wanted, found = (load(store, folders[i]).digest for i in (0, 1))
        for loaded in (True, False):  # what is there may be loaded under another name
            if not loaded:
                store.forget(found)
            with pytest.raises(AdapterUnsupported) as caught:
                load(store, folders[1], digest=wanted)
            assert wanted in caught.value.why
            assert found in caught.value.why
        assert store.loaded() == [wanted]


class TestForget:
    def test_at_once_when_nobody_uses_it(self, folders, make):
        store, woken = make()
        digest = load(store, folders[0]).digest
        woken.wait_until(store.resident)
        store.forget(digest)
        assert store.resident() == store.loaded() == []
        assert store.host_bytes == 0
        assert store.try_pin([digest]) is None
        assert isinstance(store.failed(digest), AdapterNotFound)
        settle(store)
        assert store.banks.low_rank.rows_used == 0

    def test_with_the_last_pin(self, folders, make):
        store, woken = make()
        digest = load(store, folders[0]).digest
        pin(store, woken, digest)
        pin(store, woken, digest)
        store.forget(digest)
        store.unpin([digest])
        assert store.resident() == [digest]
        store.unpin([digest])
        assert store.loaded() == []

    def test_loading_it_again_keeps_it(self, folders, make):
        store, woken = make()
        digest = load(store, folders[0]).digest
        pin(store, woken, digest)
        store.forget(digest)
        load(store, folders[0])
        store.unpin([digest])
        assert store.loaded() == [digest]

    def test_twice_or_unknown_is_fine(self, make):
        store, _ = make()
        store.forget("0" * 64)

    def test_one_pin_too_few_is_a_bug_that_shows(self, folders, make):
        store, _ = make()
        digest = load(store, folders[0]).digest
        with pytest.raises(RuntimeError, match="unpinned more often"):
            store.unpin([digest])


class TestHost:
    def one_at_a_time(self, make, **limits):
        return make(max_resident=1, max_host_bytes=1, **limits)

    def test_what_was_dropped_is_read_again(self, lab, shape, folders, make):
        store, woken = self.one_at_a_time(make)
        a, b = load(store, folders[0]), load(store, folders[1])
        assert store.host_bytes == b.num_bytes
        for digest, path in ((b.digest, folders[1]), (a.digest, folders[0])):
            (slot,) = pin(store, woken, digest)
            assert_slot_holds(store, slot, lab.compile_folder(path, shape))
            store.unpin([digest])

    @pytest.mark.parametrize("damage", ["gone", "other", "truncated"])
    def test_what_changed_on_disk_fails_and_says_so(self, folders, make, tmp_path, damage):
        store, woken = self.one_at_a_time(make)
        path = shutil.copytree(folders[0], tmp_path / "a")
        a, b = load(store, path).digest, load(store, folders[1]).digest
        pin(store, woken, b)
        weights = path / "adapter_model.safetensors"
        if damage == "gone":
            shutil.rmtree(path)
        elif damage == "other":
            shutil.copytree(folders[2], path, dirs_exist_ok=True)
        else:
            weights.write_bytes(weights.read_bytes()[:-8])
        store.unpin([b])
        assert store.try_pin([a]) is None
        woken.wait_until(lambda: store.failed(a))
        with pytest.raises(AdapterChanged):  # whoever asks for it is not to blame
            store.check([a])
        assert store.try_pin([a]) is None
        # Loading it again from where it is heals it.
        assert load(store, shutil.copytree(folders[0], tmp_path / "b")).digest == a
        pin(store, woken, a)
        store.unpin([a])

    def test_roots_hold_for_the_second_reading_too(self, folders, make, tmp_path):
        store, woken = self.one_at_a_time(make)
        root = tmp_path / "root"
        path = shutil.copytree(folders[0], root / "a")
        a, b = load(store, path, roots=[root]).digest, load(store, folders[1]).digest
        pin(store, woken, b)
        weights = path / "adapter_model.safetensors"
        weights.rename(tmp_path / "outside")
        weights.symlink_to(tmp_path / "outside")
        store.unpin([b])
        assert store.try_pin([a]) is None
        woken.wait_until(lambda: store.failed(a))
        assert "outside the folders" in store.failed(a).why


def test_an_unexpected_error_reaches_the_request_that_waits(folders, make, monkeypatch):
    store, woken = make(max_resident=1)
    a, b = load(store, folders[0]).digest, load(store, folders[1]).digest
    settle(store)

    def fail(slot, components):
        raise MemoryError("no room")

    monkeypatch.setattr(store.banks, "put", fail)
    absent = next(d for d in (a, b) if d not in store.resident())
    assert store.try_pin([absent]) is None
    woken.wait_until(lambda: store.failed(absent))
    assert "no room" in store.failed(absent).why
    monkeypatch.undo()
    load(store, folders[0 if absent == a else 1])
    pin(store, woken, absent)
    store.unpin([absent])


def test_the_loader_survives_a_callback_that_raises(shape, folders):
    def raise_error():
        raise ValueError("a bug of the caller")

    store = AdapterStore(shape, StoreLimits(), CPU, torch.float32, on_resident=raise_error)
    load(store, folders[0])
    assert load(store, folders[1]).rank == 4
    store.close()


def test_close_cancels_what_did_not_begin(shape, folders):
    store = AdapterStore(shape, StoreLimits(), CPU, torch.float32)
    futures = [store.load(path) for path in folders * 5]
    store.close()
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="closed"):
        store.load(folders[0])


def test_random_use_from_many_sides(lab, shape, folders, make):
    """Whatever is pinned holds exactly its own rows, and everything returns to zero."""
    store, _ = make(max_resident=3, max_rank_rows=20, max_host_bytes=20_000)
    programs = {}
    for path in folders:
        programs[load(store, path).digest] = lab.compile_folder(path, shape), path
    digests = list(programs)
    rng, running, runs = random.Random(0), [], 0
    deadline = time.monotonic() + 6
    while runs < 150 and time.monotonic() < deadline:
        recipe = rng.sample(digests, rng.choice([1, 1, 2]))
        action = rng.random()
        if action < 0.05:
            store.forget(recipe[0])
            store.load(programs[recipe[0]][1])
        elif len(running) < 3 and (slots := store.try_pin(recipe)) is not None:
            running.append((recipe, slots))
            runs += 1
        elif running and action < 0.7:
            done, _ = running.pop(rng.randrange(len(running)))
            store.unpin(done)
        else:
            time.sleep(0.0005)
        for held, slots in running:
            for digest, slot in zip(held, slots, strict=True):
                assert_slot_holds(store, slot, programs[digest][0])
    assert runs >= 20
    for done, _ in running:
        store.unpin(done)
    for digest in digests:
        store.forget(digest)
    settle(store)
    for digest in store.loaded():  # a load that came after the last forget
        store.forget(digest)
    settle(store)
    assert store.num_pins == 0
    assert store.host_bytes == 0
    assert store.resident() == []
    assert all(pool.rows.used == 0 for pool in store.banks.low_rank._sites.values())
    assert not any(bank.touched[slot] for bank in store.banks.acting for slot in range(3))


HOSTILE = {
    "truncated": lambda p: _cut(p / "adapter_model.safetensors", -100),
    "truncated config": lambda p: _cut(p / "adapter_config.json", -3),
    "missing config": lambda p: (p / "adapter_config.json").unlink(),
    "missing weights": lambda p: (p / "adapter_model.safetensors").unlink(),
    "pickle": lambda p: (p / "adapter_model.safetensors").rename(p / "adapter_model.bin"),
    "terabyte header": lambda p: _prefix(p / "adapter_model.safetensors", 1 << 42),
    "link out of the root": lambda p: _link_out(p / "adapter_model.safetensors"),
}


def _cut(path, end):
    path.write_bytes(path.read_bytes()[:end])


def _prefix(path, length):
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])


def _link_out(path):
    outside = path.parent.parent.parent / "outside.safetensors"
    path.rename(outside)
    path.symlink_to(outside)


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_leave_no_trace(folders, make, tmp_path, case):
    store, _ = make()
    root = tmp_path / "root"
    path = shutil.copytree(folders[0], root / "adapter")
    HOSTILE[case](path)
    settle(store)
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(AdapterError) as caught:
        load(store, path, roots=[root])
    assert caught.value.what
    assert caught.value.why
    assert caught.value.fix
    assert store.loaded() == store.resident() == []
    assert store.host_bytes == 0
    assert store.banks.low_rank._sites == {}
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_sites_of_the_bank_are_those_of_the_adapters(folders, make):
    store, woken = make()
    load(store, folders[0])
    woken.wait_until(store.resident)
    assert {site.module for site in store.banks.low_rank._sites} == {"q_proj", "v_proj"}
    assert Site(-1, "lm_head") not in store.banks.low_rank._sites
