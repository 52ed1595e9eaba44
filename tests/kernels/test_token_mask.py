import numpy as np
import pytest
import torch

from turret_kernels.token_mask import apply_token_mask

pytestmark = pytest.mark.triton


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 1100])
def test_apply_token_mask(vocab):
    allowed = np.random.default_rng(vocab).random((2, vocab)) < 0.3
    words = np.zeros((2, -(-vocab // 32)), dtype=np.uint32)
    for mask, token in zip(*allowed.nonzero(), strict=True):
        words[mask, token // 32] |= np.uint32(1) << np.uint32(token % 32)
    logits = torch.randn(4, vocab)
    expected = logits.clone()
    expected[[3, 1]] = expected[[3, 1]].where(
        torch.from_numpy(allowed).to(logits.device), torch.tensor(float("-inf"))
    )
    mask = torch.from_numpy(words.view(np.int32)).to(logits.device)
    apply_token_mask(logits, torch.tensor([3, 1], dtype=torch.int32), mask)
    assert torch.equal(logits, expected)


def test_rows_that_lie_apart_and_masks_that_are_none():
    wide = torch.zeros(3, 40)
    rows = torch.tensor([1, -1], dtype=torch.int32)
    apply_token_mask(wide[:, :35], rows, torch.zeros(2, 2, dtype=torch.int32))
    assert wide[1, :35].eq(float("-inf")).all()
    assert not wide[[0, 2]].any()
    assert not wide[1, 35:].any()
