"""Prefixes of adapters that act on some positions, or put virtual tokens before the prompt."""

from tests.server.engine.test_scheduler import BLOCK, Bench, drain

from turret_adapters.positions import Positions

SOFT = [(None, 6)]  # virtual tokens: a block and a half


def test_virtual_tokens_are_computed_before_the_prompt_and_found_again():
    bench = Bench(max_step_tokens=4)
    bench.add("a", [50, 51, 52, 53], adapters=["soft"], rules=SOFT)
    assert [bench.step()[0] for _ in range(4)] == [[("a", 4)], [("a", 4)], [("a", 2)], [("a", 1)]]
    drain(bench)
    again = bench.add("b", [60, 61, 62], adapters=["soft"], rules=SOFT)
    assert bench.step()[0] == [("b", 4)]  # 9 tokens, of which the first block was found
    assert again.num_cached == 0  # no token of the prompt was
    same = bench.add("c", [50, 51, 52, 53], adapters=["soft"], rules=SOFT)
    drain(bench)
    assert same.num_cached == 2  # two blocks, less the virtual tokens
    assert (bench.scheduler.prefix_queries, bench.scheduler.prefix_hits) == (11, 2)
    bench.assert_clean()


def test_virtual_tokens_alias_neither_other_adapters_nor_the_base():
    bench = Bench()
    prompt = [50, 51, 52, 53, 54, 55]
    bench.add("a", prompt, adapters=["soft"], rules=SOFT)
    drain(bench)
    for other in (
        bench.add("base", prompt),
        bench.add("soft 2", prompt, adapters=["soft 2"], rules=SOFT),
        bench.add("both", prompt, adapters=["soft", "lora"], rules=[*SOFT, (None, 0)]),
    ):
        found = bench.pool.match(keys(bench, other))
        assert found == []
    drain(bench)


def test_virtual_tokens_limit_the_context_and_not_the_answer():
    bench = Bench(max_model_len=12)
    bench.add("a", 3, adapters=["soft"], rules=SOFT, max_tokens=50)
    events = drain(bench)
    assert sum(len(e.tokens) for e in events) == 3
    assert events[-1].finish_reason == "length"
    bench.add("b", 3, adapters=["soft"], rules=SOFT, max_tokens=2)
    assert sum(len(e.tokens) for e in drain(bench)) == 2


def test_preempted_virtual_tokens_are_computed_again():
    bench = Bench(blocks=6, max_model_len=24)
    bench.add("a", [1, 2], adapters=["soft"], rules=SOFT, max_tokens=14)
    events = bench.step()[1]
    bench.add("b", [3, 4], adapters=["soft 2"], rules=SOFT, max_tokens=14)
    events += drain(bench)
    assert bench.scheduler.preemptions > 0
    for name in "ab":
        assert sum(len(e.tokens) for e in events if e.id == name) == 14
    bench.assert_clean()


def keys(bench, sequence):
    sequence.extend_keys(len(sequence.tokens) // BLOCK, BLOCK)
    return sequence.block_keys


INVOKED = [(Positions(invocation=(8,)), 0)]


def test_blocks_before_the_invocation_are_the_base_s_both_ways():
    prompt = [*range(8), 8, 9, 10, 11, 12]
    for first, second in (("base", "invoked"), ("invoked", "base")):
        bench = Bench()
        how = {"base": {}, "invoked": {"adapters": ["alora"], "rules": INVOKED}}
        bench.add(first, prompt, **how[first])
        drain(bench)
        other = bench.add(second, prompt, **how[second])
        bench.step()
        assert other.num_cached == 8  # the block of the invocation is no one's but its own
        drain(bench)
        again = bench.add("again", prompt, **how[second])
        bench.step()
        assert again.num_cached == 12


def test_an_invocation_that_moves_on_shares_what_lies_before():
    """The second turn of a conversation: the first invocation is no longer the last."""
    bench = Bench()
    prompt = [*range(8), 8, 9, 10, 11]
    bench.add("first", [*prompt, 12], adapters=["alora"], rules=INVOKED)
    drain(bench)
    later = [*prompt, 20, 21, 22, 8, 1, 2]
    second = bench.add("second", later, adapters=["alora"], rules=INVOKED)
    bench.step()
    assert second.num_cached == 8  # the third block was computed with the adapter on it


def test_the_last_positions_of_a_prompt_never_alias():
    bench = Bench()
    rules = [(Positions(last=3), 0)]
    bench.add("a", [*range(12), 12], adapters=["reft"], rules=rules)
    drain(bench)
    longer = bench.add("b", [*range(12), 12, 13, 14, 15], adapters=["reft"], rules=rules)
    bench.step()
    assert longer.num_cached == 8  # block 2 of the first had the adapter on two of its positions
    base = bench.add("c", [*range(12), 12])
    drain(bench)
    assert base.num_cached in (8, 12)
    third = bench.add("d", [*range(12), 12], adapters=["reft"], rules=rules)
    bench.step()
    assert third.num_cached == 12
