import random

import pytest

from turret_server.engine.prefix_cache import PrefixCache


@pytest.fixture
def cache(clock):
    return PrefixCache(clock)


def test_one_owner_loses_the_longest_unused_first(cache):
    for block in (3, 1, 2):
        cache.add(block, "")
    cache.remove(3)
    cache.add(3, "")
    assert [cache.evict() for _ in range(3)] == [1, 2, 3]


def test_who_has_most_loses_first(cache):
    for block in range(3):
        cache.add(block, "quiet")
    for block in range(10, 16):
        cache.add(block, "noisy")
    assert [cache.evict() for _ in range(3)] == [10, 11, 12]
    assert sorted(cache.evict() for _ in range(6)) == [0, 1, 2, 13, 14, 15]


def test_a_flood_keeps_to_what_others_leave(cache):
    """Eviction and reuse in turn, as under load: the flood only ever loses its own."""
    for block in range(4):
        cache.add(block, "quiet")
    for block in range(4, 12):
        cache.add(block, "noisy")
    for _ in range(1000):
        block = cache.evict()
        assert block >= 4
        cache.add(block, "noisy")


def test_what_nobody_has_used_for_long_goes_whoever_has_it(cache, clock):
    cache.add(0, "gone")
    clock.now = 601.0
    cache.add(1, "active")
    cache.add(2, "active")
    assert cache.evict() == 0


@pytest.mark.parametrize("seed", range(4))
def test_the_victims_owner_has_most_whatever_happened(cache, seed):
    rng, owned = random.Random(seed), {}
    for block in range(2000):
        if rng.random() < 0.6:
            owner = rng.choice("abcd")
            owned[block] = owner
            cache.add(block, owner)
        elif owned and rng.random() < 0.5:
            block = rng.choice(list(owned))
            del owned[block]
            cache.remove(block)
        elif owned:
            sizes = [list(owned.values()).count(owner) for owner in "abcd"]
            victim = owned[block := cache.evict()]
            assert list(owned.values()).count(victim) == max(sizes)
            del owned[block]
        assert len(cache) == len(owned)
