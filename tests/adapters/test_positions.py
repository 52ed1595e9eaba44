"""Where the adapters of a request act: pieces for the rows, keys for the cache."""

import itertools

import pytest

from turret_adapters.positions import NO_END, Positions, find_reach

PROMPT = [5, 6, 7, 8, 6, 7, 9, 1, 2, 3]  # the invocation 6, 7 occurs last at 4
INVOKED = Positions(invocation=(6, 7))
RULES = {
    "everywhere": (None, 0),
    "invoked": (INVOKED, 0),
    "never": (Positions(invocation=(99,)), 0),
    "ends": (Positions(first=2, last=3), 0),
    "generating": (Positions(generating=True), 0),
    "soft": (None, 3),
    "soft and invoked": (INVOKED, 3),
}


def acts(rule, position, num_virtual):
    """What the rule says, position by position."""
    positions, count = rule
    if positions is None or (count and position < num_virtual):
        return True
    return any(a <= position - num_virtual < b for a, b in positions.spans(PROMPT))


def test_adapters_that_act_everywhere_have_no_reach():
    assert find_reach(PROMPT, []) is None
    assert find_reach(PROMPT, [(None, 0), (None, 0)]) is None


@pytest.mark.parametrize(
    "names", [*itertools.combinations(RULES, 1), *itertools.combinations(RULES, 2)]
)
def test_pieces_say_what_the_rules_say(names):
    rules = [RULES[name] for name in names]
    if sum(count > 0 for _, count in rules) > 1:
        return
    reach = find_reach(PROMPT, rules)
    if reach is None:
        assert names == ("everywhere",)
        return
    assert reach.num_virtual == sum(count for _, count in rules)
    length = reach.num_virtual + len(PROMPT) + 4
    for start, stop in itertools.combinations(range(length + 1), 2):
        pieces = reach.pieces(start, stop)
        assert [p.start for p in pieces] == [start, *(p.stop for p in pieces[:-1])]
        assert pieces[-1].stop == stop
        for piece in pieces:
            assert piece.start < piece.stop
            # Virtual tokens and real ones never share a piece.
            assert piece.stop <= reach.num_virtual or piece.start >= reach.num_virtual
            for position in range(piece.start, piece.stop):
                wanted = [i for i, r in enumerate(rules) if acts(r, position, reach.num_virtual)]
                assert list(piece.acting) == wanted


def key(reach, start, stop, names="ab"):
    return reach.key(start, stop, list(names))


def test_a_block_that_no_span_reaches_has_the_base_s_key():
    reach = find_reach(PROMPT, [(INVOKED, 0)])
    assert reach.everywhere == frozenset()
    assert key(reach, 0, 4) == ""
    assert key(reach, 0, 5) == "4-5:a"
    assert key(reach, 4, 8) == "0-4:a"
    assert key(reach, 100, 104) == "0-4:a"


def test_keys_tell_places_and_adapters_apart():
    """Two requests of the same tokens, different in where something acts."""
    last2 = find_reach(PROMPT, [(Positions(last=2), 0)])
    last3 = find_reach(PROMPT, [(Positions(last=3), 0)])
    both = find_reach(PROMPT, [(Positions(last=2), 0), (Positions(last=3), 0)])
    longer = find_reach([*PROMPT, 4, 4, 4], [(Positions(last=3), 0)])
    blocks = [key(r, 4, 12) for r in (last2, last3, both, longer)]
    assert blocks[3] == "6-8:a"
    assert len(set(blocks)) == 4
    assert len({key(last2, 4, 12), key(last2, 4, 12, "c")}) == 2
    # Behind its span an adapter leaves no mark: the chain of keys holds what lies before.
    assert key(last2, 12, 16) == ""


def test_an_adapter_that_acts_on_all_positions_is_none_of_the_blocks():
    reach = find_reach(PROMPT, [(None, 0), (INVOKED, 0)])
    assert reach.everywhere == {0}
    assert key(reach, 4, 8) == "0-4:b"
    reach = find_reach(PROMPT, [(None, 3)])
    assert (reach.everywhere, reach.borders) == ({0}, (3,))
    assert key(reach, 0, 8) == ""


def test_spans_reach_beyond_the_end_and_no_further_border_is_made():
    reach = find_reach(PROMPT, [(Positions(generating=True), 2)])
    assert reach.borders == (2, 2 + len(PROMPT) - 1)
    assert NO_END not in reach.borders
