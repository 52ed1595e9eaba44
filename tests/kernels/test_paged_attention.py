"""RoPE, the page write and attention together: their page layout is private to them."""

import pytest
import torch

from turret_kernels import gpu
from turret_kernels.paged_attention import AttentionMetadata, paged_attention
from turret_kernels.rope_kv import (
    KVCache,
    rope_and_store,
    rope_and_store_reference,
    rotate,
    store_kv,
)
from turret_kernels.testing import poisoned

PAGE = 32
NOWHERE = 2**30  # no page


def run(lengths, contexts, heads, kv_heads, dim, window, dtype, page=PAGE):
    """Attention of each sequence's last `length` tokens; returns it with its float64 truth."""
    table = torch.randn(1200, dim)
    blocks = [-(-c // page) for c in contexts]
    cache = KVCache(
        *(poisoned(sum(blocks) + 3, kv_heads, page, dim, dtype=dtype) for _ in range(2))
    )
    # Pages of Triton and torch are as their shape says: no need to wait for the interpreter.
    store = rope_and_store if cache.native else rope_and_store_reference
    order = torch.randperm(sum(blocks) + 3)
    tables = torch.full((len(contexts), max(blocks) + 1), NOWHERE, dtype=torch.int32)
    first = 0
    for i, count in enumerate(blocks):
        tables[i, :count] = order[first : first + count]
        first += count
    history = [
        tuple(
            (size * torch.randn(c, h, dim)).to(dtype)
            for h, size in ((heads, 1), (kv_heads, 1), (kv_heads, 0.5))
        )
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
                slots.append(int(tables[i, t // page]) * page + t % page)
        if not rows:
            continue
        fused = torch.stack(rows)
        assert fused.stride(0) == stride
        q = fused[:, : heads * dim].view(-1, heads, dim)
        k = fused[:, heads * dim : (heads + kv_heads) * dim].view(-1, kv_heads, dim)
        v = fused[:, (heads + kv_heads) * dim :].view(-1, kv_heads, dim)
        store(q, k, v, table, torch.tensor(positions), torch.tensor(slots), cache)
    if window and gpu.takes(q):  # the pages behind it may be somebody else's by now
        for i, (length, context) in enumerate(zip(lengths, contexts, strict=True)):
            tables[i, : max(0, context - length + 1 - window) // page] = NOWHERE
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
    assert_near(out, expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("window", [0, 17])
def test_float32(case, window):
    out, expected = run(*CASES[case], 6, 2, 16, window, torch.float32)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


def assert_near(out, expected):
    """Probabilities and result are rounded to 16 bits once each; values are of order a half."""
    step = torch.finfo(out.dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=2 * step, atol=1.25 * step)


# Lengths, contexts, heads, key heads, dimensions, window, page. A split is 256 tokens or more.
SHAPES = {
    "decode": ([1, 1, 1], [1, 33, 270], 6, 2, 64, 0, 32),
    "pages of 16": ([1, 1], [16, 17], 6, 2, 32, 0, 16),
    "a head of its own each": ([1, 5], [40, 70], 3, 3, 80, 0, 16),
    "one key head, more splits than are added at once": ([1], [1200], 20, 1, 32, 0, 32),
    "96": ([1, 9], [70, 30], 4, 2, 96, 0, 32),
    "256": ([1, 9], [70, 30], 2, 1, 256, 0, 32),
    "prompts": ([45, 1, 130], [45, 1, 130], 3, 1, 64, 0, 32),
    "a prompt alone": ([67], [67], 7, 1, 32, 0, 16),
    "chunks": ([7, 33, 64], [40, 161, 256], 3, 1, 32, 0, 32),
    "mixed": ([1, 50, 1, 3], [129, 50, 64, 300], 4, 2, 32, 0, 32),
    "window": ([1, 50, 1, 3], [129, 50, 7, 300], 4, 2, 32, 17, 32),
    "window of splits": ([1, 90], [700, 400], 4, 1, 32, 290, 32),
    "window of one": ([1, 20], [65, 64], 4, 1, 32, 1, 32),
}


@pytest.mark.triton
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_parity(shape, dtype, assert_parity):
    *sizes, page = shape
    out, expected = run(*sizes, dtype, page)
    if dtype == torch.float32:
        assert_parity(out, expected)
    else:
        assert_near(out, expected)


@pytest.mark.triton
def test_more_splits_and_sequences_than_are_handled_at_once(monkeypatch, dtype, assert_parity):
    """Splits longer than their 256 tokens; programs that take one after another."""
    if gpu.AVAILABLE:
        for name, value in (("_MOST_SPLITS", 2), ("_PROGRAMS", 3), ("_SEQUENCES", 2)):
            monkeypatch.setattr(f"turret_kernels.gpu.paged_attention.{name}", value)
    out, expected = run([1, 1, 2, 1, 3], [600, 530, 3, 40, 3], 4, 1, 32, 0, dtype)
    if dtype == torch.float32:
        assert_parity(out, expected)
    else:
        assert_near(out, expected)


def random_pages(dtype, kv_heads=2, dim=32):
    """A full cache, in whatever order its kernels read it; and pages of it for five sequences."""
    cache = KVCache(*(torch.randn(64, kv_heads, PAGE, dim).to(dtype) for _ in range(2)))
    return cache, torch.randperm(60, dtype=torch.int32).view(5, 12)


def attend(q, cache, lengths, contexts, tables):
    starts = [0, *torch.tensor(lengths, device="cpu").cumsum(0).tolist()]
    meta = AttentionMetadata(
        torch.tensor(starts, dtype=torch.int32),
        torch.tensor(contexts, dtype=torch.int32),
        tables,
    )
    return paged_attention(q, cache, meta, 0.2)


@pytest.mark.triton
def test_a_row_does_not_depend_on_its_batch(dtype):
    cache, tables = random_pages(dtype)
    lengths, contexts = [1, 40, 1, 1, 2], [300, 90, 31, 257, 64]
    q = torch.randn(sum(lengths), 6, 32).to(dtype)
    mixed = attend(q, cache, lengths, contexts, tables)
    assert torch.equal(mixed, attend(q, cache, lengths, contexts, tables))  # and leaves no trace
    row = 0
    for i, (length, context) in enumerate(zip(lengths, contexts, strict=True)):
        rows = slice(row, row + length)
        alone = attend(q[rows], cache, [length], [context], tables[i : i + 1])
        assert torch.equal(alone, mixed[rows])
        row += length


@pytest.mark.triton
def test_a_row_does_not_depend_on_its_chunk(dtype):
    """From where a tile of queries begins: numpy multiplies each row of a matrix by its place."""
    cache, tables = random_pages(dtype)
    q = torch.randn(130, 4, 32).to(dtype)
    whole = attend(q, cache, [130], [150], tables[:1])
    for first in (64, 128):
        chunk = attend(q[first:], cache, [130 - first], [150], tables[:1])
        assert torch.equal(chunk, whole[first:])


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
