import random

from turret_server.engine.blocks import BlockPool, next_key, root_key


def chain(tokens, size=4, namespace="", recipe=""):
    keys, parent = [], root_key(namespace, recipe)
    for i in range(0, len(tokens) - size + 1, size):
        parent = next_key(parent, tokens[i : i + size])
        keys.append(parent)
    return keys


def test_a_prefix_is_found_as_far_as_it_agrees():
    pool = BlockPool(8, 4)
    blocks = pool.try_allocate(3)
    for block, key in zip(blocks, chain(list(range(12))), strict=True):
        pool.register(block, key)
    pool.release(blocks)
    assert pool.match(chain(list(range(12)))) == blocks
    assert pool.match(chain([0, 1, 2, 3, 4, 5, 6, 99])) == blocks[:1]


def test_keys_differ_by_namespace_and_recipe():
    """No pair of names may alias another: the parts are length-prefixed."""
    roots = {root_key(*pair) for pair in [("a", "b"), ("ab", ""), ("", "ab"), ("a", ""), ("", "")]}
    assert len(roots) == 5


def test_blank_blocks_are_reused_before_cached_ones_and_old_before_new():
    pool = BlockPool(4, 4)
    old, new = pool.try_allocate(1), pool.try_allocate(1)
    pool.register(old[0], b"old")
    pool.register(new[0], b"new")
    pool.release(old)
    pool.release(new)
    pool.try_allocate(2)
    assert pool.match([b"old"]) == old
    pool.try_allocate(1)
    assert pool.match([b"old"]) == []
    assert pool.match([b"new"]) == new


def test_a_held_block_is_never_given_away():
    pool = BlockPool(2, 4)
    block = pool.try_allocate(1)
    pool.register(block[0], b"key")
    pool.release(block)
    pool.hold(pool.match([b"key"]))
    assert pool.try_allocate(2) is None
    assert pool.num_free == 1


def test_random_traffic_loses_nothing():
    pool, rng, held = BlockPool(32, 4), random.Random(0), []
    for step in range(3000):
        if held and rng.random() < 0.5:
            pool.release(held.pop(rng.randrange(len(held))))
            continue
        keys = [bytes([rng.randrange(4), i]) for i in range(rng.randrange(5))]
        found = pool.match(keys)
        pool.hold(found)
        fresh = pool.try_allocate(rng.randrange(4))
        if fresh is None:
            pool.release(found)
            continue
        for i, block in enumerate(fresh):
            pool.register(block, bytes([step % 4, len(found) + i]))
        held.append(found + fresh)
        used = {b for blocks in held for b in blocks}
        assert len(used) == pool.num_blocks - pool.num_free
    for blocks in held:
        pool.release(blocks)
    assert pool.num_free == 32
