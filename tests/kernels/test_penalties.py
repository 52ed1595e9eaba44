import numpy as np
import pytest
import torch

from turret_kernels.penalties import apply_penalties, changes_table

pytestmark = pytest.mark.triton


@pytest.mark.parametrize("count", [1, 37, 600])
def test_apply_penalties(count):
    """Every kind of change, each pair of row and token once."""
    generator = np.random.default_rng(count)
    at = generator.choice(5 * 301, count, replace=False)
    row, token = at // 301, at % 301
    repetition = np.where(generator.random(count) < 0.5, 1, generator.uniform(0.5, 2, count))
    penalty, bias = generator.random(count), generator.normal(size=count)
    bias[generator.random(count) < 0.2] = -np.inf
    logits = torch.randn(5, 301)
    expected = logits.double().cpu().numpy()
    for r, t, *change in zip(row, token, repetition, penalty, bias, strict=True):
        x = expected[r, t]
        expected[r, t] = (x / change[0] if x > 0 else x * change[0]) - change[1] + change[2]
    changes = changes_table(row, token, repetition, penalty, bias).to(logits.device)
    apply_penalties(logits, changes)
    # Three roundings of numbers up to 8.
    torch.testing.assert_close(
        logits.cpu().double(), torch.from_numpy(expected), rtol=1e-6, atol=1e-6
    )


def test_the_order_is_repetition_penalty_bias():
    logits = torch.tensor([[4.0, -4.0, 1.0]])
    rows, tokens, ones = np.zeros(2), np.arange(2), np.ones(2)
    apply_penalties(logits, changes_table(rows, tokens, 2 * ones, ones, 3 * ones).to(logits.device))
    assert logits.tolist() == [[4.0, -6.0, 1.0]]


def test_rows_that_lie_apart_and_changes_that_are_none():
    wide = torch.zeros(3, 10)
    ones = np.ones(3)
    changes = changes_table(np.array([2, -1, 0]), np.array([1, 1, 7]), ones, 0 * ones, ones)
    apply_penalties(wide[:, :8], changes.to(wide.device))
    assert wide.nonzero().tolist() == [[0, 7], [2, 1]]
