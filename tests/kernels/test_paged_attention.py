"""RoPE, the page write and attention together: their page layout is private to them."""

import pytest
import torch

from turret_kernels.paged_attention import AttentionMetadata, paged_attention
from turret_kernels.rope_kv import KVCache, rope_and_store, rotate, store_kv
from turret_kernels.testing import poisoned

PAGE = 32


def run(lengths, contexts, heads, kv_heads, dim, window, dtype, chunks=1):
    """Attention of each sequence's last `length` tokens; returns it with its float64 truth."""
    table = torch.randn(600, dim)
    blocks = [-(-c // PAGE) for c in contexts]
    cache = KVCache(
        *(poisoned(sum(blocks) + 3, kv_heads, PAGE, dim, dtype=dtype) for _ in range(2))
    )
    order = torch.randperm(sum(blocks) + 3)
    tables = torch.full((len(contexts), max(blocks)), 2**30, dtype=torch.int32)
    first = 0
    for i, count in enumerate(blocks):
        tables[i, :count] = order[first : first + count]
        first += count
    history = [
        tuple(torch.randn(c, h, dim).to(dtype) for h in (heads, kv_heads, kv_heads))
        for c in contexts
    ]
    stride = (heads + 2 * kv_heads) * dim
    # First everything but the last `length` tokens of each sequence, then those, ragged.
    for part in ("past", "now"):
        rows, positions, slots, lens, ctx = [], [], [], [], []
        for i, (length, context) in enumerate(zip(lengths, contexts, strict=True)):
            span = range(context - length) if part == "past" else range(context - length, context)
            lens.append(len(span))
            ctx.append(span.stop)
            for t in span:
                rows.append(torch.cat([x[t].flatten() for x in history[i]]))
                positions.append(t)
                slots.append(int(tables[i, t // PAGE]) * PAGE + t % PAGE)
        if not rows:
            continue
        fused = torch.stack(rows)
        assert fused.stride(0) == stride
        q = fused[:, : heads * dim].view(-1, heads, dim)
        k = fused[:, heads * dim : (heads + kv_heads) * dim].view(-1, kv_heads, dim)
        v = fused[:, (heads + kv_heads) * dim :].view(-1, kv_heads, dim)
        rope_and_store(q, k, v, table, torch.tensor(positions), torch.tensor(slots), cache)
        meta = AttentionMetadata(
            torch.tensor([0, *torch.tensor(lens).cumsum(0).tolist()], dtype=torch.int32),
            torch.tensor(ctx, dtype=torch.int32),
            tables,
        )
        out = paged_attention(q, cache, meta, dim**-0.5, window)
    expected = []
    for (length, context), (q, k, v) in zip(
        zip(lengths, contexts, strict=True), history, strict=True
    ):
        cos, sin = table[:context].chunk(2, dim=-1)
        q, k = rotate(q, cos, sin).double(), rotate(k, cos, sin).double()
        k, v = (x.double().repeat_interleave(heads // kv_heads, 1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * dim**-0.5
        i = torch.arange(context)
        mask = i[None] > i[:, None]
        if window:
            mask |= i[None] <= i[:, None] - window
        weights = scores.masked_fill(mask, float("-inf")).softmax(-1)
        expected.append(torch.einsum("hqk,khd->qhd", weights, v.double())[context - length :])
    return out, torch.cat(expected).flatten(1)


CASES = {
    "decode": ([1, 1, 1, 1], [1, 33, 140, 260]),
    "prefill": ([45, 1, 130], [45, 1, 130]),
    "chunks": ([7, 33, 64], [40, 161, 256]),
    "mixed": ([1, 50, 1, 3], [129, 50, 64, 300]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 32), (8, 1, 128)])
@pytest.mark.parametrize("window", [0, 17, 129])
def test_bfloat16(case, heads, kv_heads, dim, window):
    out, expected = run(*CASES[case], heads, kv_heads, dim, window, torch.bfloat16)
    # Probabilities and result are rounded to bf16 once each; values are of order one.
    torch.testing.assert_close(out.double(), expected, rtol=2**-6, atol=2e-2)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("window", [0, 17])
def test_float32(case, window):
    out, expected = run(*CASES[case], 6, 2, 16, window, torch.float32)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_sequence_does_not_depend_on_its_batch_or_chunk():
    torch.manual_seed(3)
    alone, _ = run([1], [200], 9, 3, 64, 0, torch.bfloat16)
    torch.manual_seed(3)
    chunked, _ = run([33], [200], 9, 3, 64, 0, torch.bfloat16)
    assert torch.equal(alone[-1], chunked[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_keys_that_are_stored_as_they_are(dtype):
    """Written by nobody but `store_kv`, into rows of two pages, from strided views."""
    kv_heads, dim, count = 2, 32, 41
    cache = KVCache(*(poisoned(3, kv_heads, PAGE, dim, dtype=dtype) for _ in range(2)))
    both = torch.randn(count, 2 * kv_heads, dim).to(dtype)
    k, v = both[:, :kv_heads], both[:, kv_heads:]
    place = torch.arange(count)
    slots = torch.tensor([2, 0])[place // PAGE] * PAGE + place % PAGE
    store_kv(k, v, slots, cache)
    q = torch.randn(1, 4, dim).to(dtype)
    metadata = AttentionMetadata(
        query_start=torch.tensor([0, 1], dtype=torch.int32),
        context_len=torch.tensor([count], dtype=torch.int32),
        block_table=torch.tensor([[2, 0]], dtype=torch.int32),
    )
    found = paged_attention(q, cache, metadata, dim**-0.5).view(4, dim)
    keys, values = (x.double().repeat_interleave(2, 1).transpose(0, 1) for x in (k, v))
    scores = torch.einsum("hd,htd->ht", q[0].double(), keys) * dim**-0.5
    expected = torch.einsum("ht,htd->hd", scores.softmax(-1), values)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
