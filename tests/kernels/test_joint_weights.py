"""Weights of several experts at once: never worse than one of them, nor than where they start."""

import numpy as np
import pytest
import torch
from tests.kernels.test_dynamic_weights import kl, log_softmax, losses, random_case, targets

from turret_kernels import gpu
from turret_kernels.dynamic_weights import dynamic_weights
from turret_kernels.fusion import Fusion, Members
from turret_kernels.joint_weights import joint_weights


@pytest.mark.triton
def test_all_experts_together_are_never_worse_than_one():
    generator = np.random.default_rng(9)
    better = 0
    for _ in range(3 if gpu.INTERPRETED else 40):
        large, base, expert = random_case(generator, 60)
        other = base + generator.normal(size=60) * generator.choice([0.3, 1, 3])
        rows = np.stack([large, base, expert, other]).astype(np.float32)
        logits = torch.from_numpy(rows).to(torch.empty(0).device)
        both = [Fusion(rows=(0, 1, 2, 3), limit=2.0, joint=j) for j in (False, True)]
        found = dynamic_weights(logits, Members.of(both, logits.device)).cpu().double().numpy()
        alone, joint = found.reshape(2, 4)
        assert joint[1] == pytest.approx(-joint[2:].sum(), abs=1e-6)
        assert (joint[2:] >= 0).all()
        assert (joint[2:] <= 2).all()
        large, base, *experts = rows.astype(np.float64)
        was, now = losses(large, base, experts, np.stack([alone[2:], joint[2:]]))
        scale = sum(targets(base, expert) for expert in experts) ** 2
        assert now <= was * (1 + 2e-3) + 1e-6 * scale + 1e-9
        better += now < 0.9 * was
    assert better > 0


def test_one_expert_is_the_same_together():
    rows = random_case(np.random.default_rng(10), 100)
    logits = torch.from_numpy(rows)
    fusions = [Fusion(rows=(0, 1, 2), limit=2.0, joint=joint) for joint in (False, True)]
    alone, joint = dynamic_weights(logits, Members.of(fusions, logits.device)).view(2, 3)
    assert torch.equal(alone, joint)


def test_it_goes_down_from_where_it_starts():
    """Most often far down; never up."""
    generator = np.random.default_rng(12)
    better = 0
    for _ in range(20):
        large, base, expert = random_case(generator, 50)
        rows = np.stack([large, base, expert, base + generator.normal(size=50)]).astype(np.float32)
        wide = rows.astype(np.float64)
        log_q, *log_t = (log_softmax(row) for row in wide[1:])
        target = (
            float(np.mean([kl(log, log_q) for log in log_t])),
            float(np.mean([kl(log_q, log) for log in log_t])),
        )
        starts = generator.uniform(0, 2, (2, 2))
        found = joint_weights(torch.from_numpy(rows), target, 2.0, starts.tolist())
        every = losses(wide[0], wide[1], wide[2:], np.stack([*starts, found]))
        scale = sum(targets(wide[1], one) for one in wide[2:]) ** 2
        assert every[2] <= every[:2].min() + 1e-5 * scale
        better += every[2] < every[:2].min() - 1e-3 * scale
    assert better > 10


def test_banned_tokens_are_left_out_and_weights_stay_in_range():
    rows = torch.randn(4, 30)
    padded = torch.full((4, 33), float("-inf"))
    padded[:, 1:31] = rows
    padded[2, 32] = 5.0
    for limit in (0.25, 2.0):
        found = joint_weights(padded, (0.5, 0.5), limit, [[limit, limit]])
        assert found == pytest.approx(joint_weights(rows, (0.5, 0.5), limit, [[limit, limit]]))
        assert all(0 <= a <= limit for a in found)
