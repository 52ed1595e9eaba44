"""Shares to rows: which adapters act on which of them, and what virtual tokens look like."""

import torch

from turret_adapters.plan import RowUse
from turret_adapters.positions import Positions, find_reach
from turret_server.engine.batch import BatchBuilder, Padding, row_uses
from turret_server.engine.messages import AdapterUse, EngineRequest, Sampling
from turret_server.engine.sequence import Sequence
from turret_server.engine.shares import Share

PROMPT = [10, 11, 12, 13, 14, 15]
LAST = Positions(last=2)


def share(start, count, slots=(), rules=None, table_row=0):
    adapters = tuple(AdapterUse(f"d{slot}", 1.0) for slot in slots)
    rules = rules or [(None, 0)] * len(slots)
    request = EngineRequest(id="r", prompt=PROMPT, sampling=Sampling(), adapters=adapters)
    sequence = Sequence.of(request, 0.0, find_reach(PROMPT, rules), (1.0,) * len(slots))
    sequence.slots, sequence.table_row = tuple(slots), table_row
    sequence.blocks = [3 + table_row, 5 + table_row, 7 + table_row]
    return Share(sequence, start, count)


def test_rows_of_one_recipe_are_one_use():
    assert row_uses([share(0, 3, [1]), share(2, 2, [1]), share(0, 1), share(0, 1, [1])]) == [
        RowUse(0, 5, (1,), (1.0,)),
        RowUse(6, 1, (1,), (1.0,)),
    ]


def test_an_adapter_acts_inside_its_spans_alone():
    rules = [(LAST, 0)]
    assert row_uses([share(0, 3, [1], rules)]) == []
    assert row_uses([share(0, 3), share(2, 4, [1], rules)]) == [RowUse(5, 2, (1,), (1.0,))]
    both = [(None, 0), (LAST, 0)]
    assert row_uses([share(0, 6, [1, 2], both)]) == [
        RowUse(0, 4, (1,), (1.0,)),
        RowUse(4, 2, (1, 2), (1.0, 1.0)),
    ]


def test_virtual_tokens_are_uses_of_their_own():
    rules = [(None, 4), (LAST, 0)]
    assert row_uses([share(1, 9, [1, 2], rules), share(0, 2, [1, 2], rules)]) == [
        RowUse(0, 3, (1,), (1.0,), virtual=1),
        RowUse(3, 4, (1,), (1.0,)),
        RowUse(7, 2, (1, 2), (1.0, 1.0)),
        RowUse(9, 2, (1,), (1.0,), virtual=0),
    ]


def test_a_share_behind_the_last_border_joins_its_neighbours():
    """Decodes of soft prompts and of plain adapters are one use."""
    shares = [share(9, 1, [1], [(None, 4)]), share(5, 1, [1])]
    assert row_uses(shares) == [RowUse(0, 2, (1,), (1.0,))]


def test_rows_that_pad_a_step_run_what_its_last_row_runs():
    adapted, bare = share(0, 1, [1]), share(0, 1)
    assert row_uses([adapted] * 3, num_rows=4) == [RowUse(0, 4, (1,), (1.0,))]
    assert row_uses([bare, share(0, 1, [2])], num_rows=4) == [RowUse(1, 3, (2,), (1.0,))]
    assert row_uses([adapted, bare], num_rows=4) == [RowUse(0, 1, (1,), (1.0,))]
    assert row_uses([bare], num_rows=4) == []


def test_virtual_tokens_take_positions_and_places_and_token_0():
    batch = BatchBuilder(16, 2, 4, 4).build([share(1, 6, [1], [(None, 3)])])
    assert batch.token_ids.tolist() == [0, 0, 10, 11, 12, 13]
    assert batch.positions.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.slots.tolist() == [13, 14, 15, 20, 21, 22]


def test_padding_adds_rows_that_touch_the_scratch_block_alone():
    shares = [share(5, 1, table_row=row) for row in range(3)]
    plain = BatchBuilder(16, 8, 4, 4).build(shares)
    padded = BatchBuilder(16, 8, 4, 4, padding=Padding((1, 2, 4, 8), 99)).build(shares)
    for name in ("token_ids", "positions", "slots"):
        assert getattr(padded, name)[:3].equal(getattr(plain, name))
    assert padded.token_ids.tolist()[3:] == [0]
    assert padded.slots.tolist()[3:] == [99 * 4]
    meta = padded.attention
    assert meta.query_start.tolist() == [0, 1, 2, 3, 4]
    assert meta.context_len.tolist() == [6, 6, 6, 1]
    assert meta.block_table[3, 0] == 99
    assert padded.logit_rows is None


def test_a_step_beyond_the_buckets_and_a_prefill_are_not_padded():
    padding = Padding((1, 2), 99)
    assert [padding.rows(n) for n in (1, 2, 3)] == [1, 2, 3]
    batch = BatchBuilder(16, 4, 4, 4, padding=padding).build([share(0, 3)])
    assert batch.token_ids.shape[0] == 3


def test_tokens_that_only_the_device_knows_are_taken_from_the_draw():
    shares = [share(5, 1, table_row=row) for row in range(3)]
    for number, row in ((0, 2), (2, 0)):
        shares[number].sequence.draw_row = row
    drawn = torch.tensor([70, 71, 72])
    for padding, rows in ((None, 3), (Padding((8,), 99), 8)):
        builder = BatchBuilder(16, 8, 4, 4, padding=padding)
        expected = [72, PROMPT[5], 70] + [0] * (rows - 3)
        assert builder.build(shares, drawn).token_ids.tolist() == expected
    beside = BatchBuilder(16, 8, 4, 4).build([share(0, 4), shares[2]], drawn)
    assert beside.token_ids.tolist() == [*PROMPT[:4], 70]
