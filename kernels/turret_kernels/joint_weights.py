"""Dynamic logit fusion with several experts that act at once.

The paper (arXiv 2406.15480) states its objective for all weights a = (a_1, …, a_T) and, because the
grid would have 21^T values, lets one expert act per token. The objective needs no grid. With
d_t = log Q_t - log Q, centred so that E_P[d_t] = 0, and P_a proportional to P exp(sum_t a_t d_t):

    KL(P || P_a) = log Z(a)            derivative E_a[d]
    KL(P_a || P) = a E_a[d] - log Z(a)   derivative Cov_a(d) a

so that one pass over the vocabulary yields the two brackets of the loss and their Jacobian [2, T].
Gauss-Newton steps of least length, kept within the range, go down from given starts; the best of
all weights that were looked at is returned, so that the result is never worse than its starts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_STEPS = 6
_TOLERANCE = 1e-3  # of the loss, relative


def joint_weights(
    rows: Tensor, target: tuple[float, float], limit: float, starts: Sequence[Sequence[float]]
) -> list[float]:
    """Weights of T experts in [0, limit] with a small loss.

    Args:
        rows: [2 + T, V]: the large model, the base, the experts.
        target: KL(Q_t || Q) and KL(Q || Q_t), means over the experts.
        limit: the largest weight.
        starts: weights to begin with, each T long.
    """
    rows = rows[:, (rows > float("-inf")).all(0)]
    log_p, shifts = rows[0].log_softmax(-1), rows[2:] - rows[1]
    shifts = shifts - (shifts @ log_p.exp())[:, None]
    goal = np.array([target[1], target[0]])

    def look(a: NDArray[np.float64]) -> tuple[float, NDArray, NDArray]:
        """The loss, its brackets [2] and their Jacobian [2, T]."""
        z = log_p + torch.from_numpy(a).to(log_p) @ shifts
        log_z = z.logsumexp(-1)
        weighted = shifts * (z - log_z).exp()
        mean = weighted.sum(-1)
        moments = torch.cat([weighted @ shifts.T, mean[:, None], log_z.expand(len(mean), 1)], 1)
        table = moments.double().cpu().numpy()
        mean, log_z = table[:, -2], table[0, -1]
        covariance = table[:, :-2] - np.outer(mean, mean)
        brackets = np.array([log_z, a @ mean - log_z]) - goal
        return float(brackets @ brackets), brackets, np.stack([mean, covariance @ a])

    best, least = np.zeros(len(shifts)), float("inf")
    for start in starts:
        a = np.asarray(start, dtype=np.float64)
        loss, brackets, jacobian = look(a)
        if loss < least:
            best, least = a, loss
        for _ in range(_STEPS):
            step = np.linalg.lstsq(jacobian, -brackets, rcond=1e-6)[0]
            for scale in (1.0, 0.5, 0.125):
                tried = np.clip(a + scale * step, 0.0, limit)
                found = look(tried)
                if found[0] < loss:
                    break
            else:
                break
            enough = found[0] > (1 - _TOLERANCE) * loss
            a, (loss, brackets, jacobian) = tried, found
            if loss < least:
                best, least = a, loss
            if enough or least < 1e-10:
                break
    return best.tolist()
