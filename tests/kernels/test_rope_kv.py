"""Pages as torch and Triton lay them out; the native layout is tested with attention."""

import pytest
import torch

from turret_kernels.rope_kv import KVCache, rope_and_store, rope_and_store_reference, store_kv
from turret_kernels.testing import exact, poisoned

pytestmark = pytest.mark.triton

PAGE = 16  # no native layout has it
SLOTS = (0, 17, 5 * PAGE - 1, 5 * PAGE, 40)


def cache(kv_heads, dim, dtype):
    return KVCache(*(poisoned(7, kv_heads, PAGE, dim, dtype=dtype) for _ in range(2)))


def written(pages):
    """Pages with zeros where nobody has written, and where that is."""
    return pages.nan_to_num(0.0), pages.isnan()


# One program's heads and fewer and more; halves that are powers of two, and 40 that is none.
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 32), (8, 1, 128), (20, 10, 80)]
)
def test_rope_and_store(heads, kv_heads, dim, dtype, assert_parity):
    fused = torch.randn(len(SLOTS), heads + 2 * kv_heads, dim).to(dtype)
    table, positions = torch.randn(50, dim), torch.tensor([49, 0, 7, 8, 7])
    slots, pages = torch.tensor(SLOTS), cache(kv_heads, dim, dtype)
    q, k, v = exact(fused).split_with_sizes([heads, kv_heads, kv_heads], 1)
    expected_q, expected = q.clone(), KVCache(exact(pages.k), exact(pages.v))
    rope_and_store_reference(expected_q, k, v, exact(table), positions, slots, expected)
    q, k, v = fused.split_with_sizes([heads, kv_heads, kv_heads], 1)
    before = k.clone(), v.clone()
    rope_and_store(q, k, v, table, positions, slots, pages)
    assert_parity(q, expected_q)
    for found, wanted in ((pages.k, expected.k), (pages.v, expected.v)):
        (found, is_empty), (wanted, is_wanted_empty) = written(found), written(wanted)
        assert torch.equal(is_empty, is_wanted_empty)
        assert_parity(found, wanted)
    assert torch.equal(k, before[0])
    assert torch.equal(v, before[1])


def test_keys_that_are_stored_as_they_are(dtype):
    both, pages = torch.randn(len(SLOTS), 6, 32).to(dtype), cache(3, 32, dtype)
    k, v = both[:, :3], both[:, 3:]
    store_kv(k, v, torch.tensor(SLOTS), pages)
    for row, slot in enumerate(SLOTS):
        assert torch.equal(pages.k[slot // PAGE, :, slot % PAGE], k[row])
        assert torch.equal(pages.v[slot // PAGE, :, slot % PAGE], v[row])
    assert written(pages.k)[1].sum() == (7 * PAGE - len(SLOTS)) * 3 * 32
