"""The paper's formulas in numpy, and its grid: no weight that is found may be worse."""

import numpy as np
import pytest
import torch

from turret_kernels import gpu
from turret_kernels.dynamic_weights import (
    dynamic_weights,
    dynamic_weights_reference,
    grid_weights,
)
from turret_kernels.fusion import Fusion, Members

GRID = np.arange(21) * 0.1


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def kl(log_p, log_q):
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def losses(large, base, experts, weights):
    """The objective for each row of weights [n, T]; members in float64, targets of all experts."""
    log_p, log_q = log_softmax(large), log_softmax(base)
    shift = np.tensordot(weights, np.stack([e - base for e in experts]), 1)
    fused = log_softmax(large + shift)
    total = 0.0
    for expert in experts:
        log_t = log_softmax(expert)
        total = total + (kl(fused, log_p) - kl(log_t, log_q)) ** 2
        total = total + (kl(log_p, fused) - kl(log_q, log_t)) ** 2
    return total


def targets(base, expert):
    return kl(log_softmax(expert), log_softmax(base)) + kl(log_softmax(base), log_softmax(expert))


def random_case(generator, vocab):
    """Large, base and expert: an expert near its base, one that raises a few tokens, or any."""
    large = generator.normal(size=vocab) * generator.choice([0.5, 2, 4, 8])
    base = large * generator.uniform(0.2, 1) + generator.normal(size=vocab) * generator.choice(
        [0.3, 1, 2]
    )
    kind = generator.integers(3)
    if kind == 0:
        expert = base + generator.normal(size=vocab) * generator.choice([0.1, 0.5, 1, 3])
    elif kind == 1:
        expert = base.copy()
        expert[generator.integers(0, vocab, 3)] += generator.choice([2, 5, 10, 20], 3)
    else:
        expert = generator.normal(size=vocab) * 4
    return np.stack([large, base, expert]).astype(np.float32)


def search(rows, experts=1):
    """Rows [n, 2 + experts, V] of n requests -> their weights [n, 2 + experts]."""
    count, size, vocab = rows.shape
    logits = torch.from_numpy(rows.reshape(-1, vocab)).to(torch.empty(0).device)
    fusions = [Fusion(rows=tuple(range(i * size, (i + 1) * size)), limit=2.0) for i in range(count)]
    members = Members.of(fusions, logits.device)
    return dynamic_weights(logits, members).cpu().numpy().reshape(count, size), logits, members


@pytest.mark.triton
@pytest.mark.parametrize("vocab", [8, 50, 700] if not gpu.INTERPRETED else [8, 2500])
def test_never_worse_than_the_grid(vocab):
    generator = np.random.default_rng(vocab)
    rows = np.stack([random_case(generator, vocab) for _ in range(10 if gpu.INTERPRETED else 700)])
    weights, *_ = search(rows)
    for (large, base, expert), found in zip(rows.astype(np.float64), weights, strict=True):
        assert found[0] == 1
        assert found[1] == -found[2]
        grid = losses(large, base, [expert], GRID[:, None]).min()
        loss = losses(large, base, [expert], found[None, 2:].astype(np.float64))[0]
        # The search stops 1e-3 above the minimum, and where float32 sums no longer tell.
        assert loss <= grid * (1 + 2e-3) + 1e-6 * targets(base, expert) ** 2 + 1e-10


@pytest.mark.triton
def test_as_good_as_the_reference():
    generator = np.random.default_rng(1)
    rows = np.stack([random_case(generator, 120) for _ in range(6)])
    weights, logits, members = search(rows)
    best = dynamic_weights_reference(logits.cpu(), members).numpy().reshape(weights.shape)
    for (large, base, expert), found, true in zip(
        rows.astype(np.float64), weights.astype(np.float64), best.astype(np.float64), strict=True
    ):
        loss, least = losses(large, base, [expert], np.stack([found[2:], true[2:]]))
        assert loss <= least * 1.01 + 1e-5 * targets(base, expert) ** 2


@pytest.mark.triton
def test_of_several_experts_one_acts():
    """As published: the best of all (expert, value), each alone, against the targets of all."""
    generator = np.random.default_rng(2)
    rows = []
    for _ in range(4):
        large, base, expert = random_case(generator, 60)
        rows.append([large, base, expert, base + generator.normal(size=60), expert * 0.7])
    rows = np.array(rows, dtype=np.float32)
    weights, *_ = search(rows)
    for members, found in zip(rows.astype(np.float64), weights.astype(np.float64), strict=True):
        large, base, *experts = members
        acting = np.flatnonzero(found[2:])
        assert len(acting) == 1
        assert found[1] == -found[2 + acting[0]]
        alone = np.concatenate([np.outer(GRID, row) for row in np.eye(3)])
        loss = losses(large, base, experts, found[None, 2:])[0]
        assert loss <= losses(large, base, experts, alone).min() * (1 + 2e-3)


@pytest.mark.triton
def test_a_base_that_is_the_large_model_follows_its_expert():
    generator = np.random.default_rng(3)
    large, _, expert = random_case(generator, 200)
    weights, *_ = search(np.stack([large, large, expert])[None])
    np.testing.assert_allclose(weights[0], [1, -1, 1], atol=1e-3)


@pytest.mark.triton
def test_an_expert_that_is_its_base_does_nothing():
    rows = random_case(np.random.default_rng(4), 200)
    rows[2] = rows[1]
    weights, *_ = search(rows[None])
    assert weights.tolist() == [[1, 0, 0]]


@pytest.mark.triton
def test_tokens_that_one_of_the_three_bans_are_left_out():
    rows = np.stack([random_case(np.random.default_rng(i), 300) for i in (5, 6)])
    padded = np.full((2, 3, 310), -np.inf, dtype=np.float32)
    padded[:, :, 5:305] = rows
    padded[0, 0, 0] = padded[0, 2, 308] = padded[1, 1, 309] = 7.0
    weights, *_ = search(padded)
    np.testing.assert_allclose(weights, search(rows)[0], atol=1e-2)


@pytest.mark.triton
def test_limits_temperatures_and_weights_as_given():
    rows = random_case(np.random.default_rng(7), 100)
    scaled = rows * np.array([[2.0], [0.5], [3.0]], dtype=np.float32)
    logits = torch.from_numpy(np.concatenate([rows, scaled])).to(torch.empty(0).device)
    fusions = [
        Fusion(rows=(0, 1, 2), limit=2.0),
        Fusion(rows=(2, 0), weights=(0.25, -3.0)),
        Fusion(rows=(3, 4, 5), temperatures=(2.0, 0.5, 3.0), limit=2.0),
        Fusion(rows=(0, 1, 2), limit=0.125),
    ]
    weights = dynamic_weights(logits, Members.of(fusions, logits.device)).cpu()
    assert weights[3:5].tolist() == [0.25, -3.0]
    assert weights[2] > 0.125
    assert weights[-1] == 0.125
    torch.testing.assert_close(weights[5:8], weights[:3], rtol=0, atol=1e-3)


@pytest.mark.triton
def test_a_search_does_not_depend_on_the_others():
    rows = np.stack([random_case(np.random.default_rng(i), 90) for i in range(3)])
    together, *_ = search(rows)
    assert (search(rows[1:2])[0] == together[1]).all()


def test_the_grid_is_the_published_one():
    generator = np.random.default_rng(8)
    rows = np.stack([random_case(generator, 40) for _ in range(20)])
    _, logits, members = search(rows)
    found = grid_weights(logits, members).numpy().reshape(20, 3)
    for (large, base, expert), weights in zip(rows.astype(np.float64), found, strict=True):
        every = losses(large, base, [expert], GRID[:, None])
        loss = every[round(float(weights[2]) * 10)]
        assert loss <= every.min() * (1 + 1e-4) + 1e-9  # neighbours may tie


@pytest.mark.triton
def test_a_request_may_ask_for_the_grid():
    rows = random_case(np.random.default_rng(11), 100)
    logits = torch.from_numpy(rows).to(torch.empty(0).device)
    fusions = [Fusion(rows=(0, 1, 2), limit=2.0, grid=grid) for grid in (False, True)]
    members = Members.of(fusions, logits.device)
    searched, grid = dynamic_weights(logits, members).cpu().view(2, 3)
    assert torch.equal(grid, grid_weights(logits, members).cpu()[3:])
    assert not torch.equal(searched, grid)
