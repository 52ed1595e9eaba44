import numpy as np
import pytest
import torch

from turret_kernels.fusion import Fusion, Members, fuse, fuse_reference
from turret_kernels.testing import exact

KINDS = {
    "proxy-tuning": Fusion(rows=(0, 1, 2), weights=(1.0, -1.0, 1.0)),
    "contrastive": Fusion(rows=(3, 4), weights=(1.0, -1.0), temperatures=(1.0, 0.5), plausible=0.1),
    "guidance": Fusion(rows=(5, 3), weights=(-0.5, 1.5)),
    "product": Fusion(rows=(0, 2, 4), weights=(0.2, 0.5, 0.3), temperatures=(0.7, 1.0, 2.0)),
    "mixture": Fusion(rows=(1, 4, 2), weights=(0.2, 0.5, 0.3), mixture=True),
    "plausible mixture": Fusion(rows=(1, 0), weights=(0.2, 0.5), mixture=True, plausible=0.05),
    "left out": Fusion(rows=(5, 1), weights=(1.0, 0.0)),
    "nucleus": Fusion(rows=(0, 1, 2), weights=(1.0, -2.0, 2.0), nucleus=0.9),
    "one model twice": Fusion(rows=(4, 4), weights=(1.5, -0.5), temperatures=(1.0, 2.0)),
}


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def by_formula(x, fusion):
    """float64 logits from the formulas of the papers."""
    temperatures = fusion.temperatures or (1.0,) * len(fusion.rows)
    rows = [x[row] / t for row, t in zip(fusion.rows, temperatures, strict=True)]
    if fusion.mixture:
        z = np.log(sum(w * softmax(r) for w, r in zip(fusion.weights, rows, strict=True)))
    else:
        z = sum(w * r for w, r in zip(fusion.weights, rows, strict=True))
    judge = softmax(rows[0])
    z[judge < fusion.plausible * judge.max()] = -np.inf
    likeliest = np.argsort(-judge)
    inside = np.cumsum(judge[likeliest]) - judge[likeliest] < fusion.nucleus
    z[likeliest[~inside]] = -np.inf
    return z


def compare(found, expected):
    """Three logits of up to 30, rounded to float32, and a product of them; the same bans."""
    torch.testing.assert_close(found.double().cpu(), expected.cpu(), rtol=2e-6, atol=2e-5)


@pytest.mark.triton
@pytest.mark.parametrize("vocab", [1, 100, 4500])
def test_all_kinds_in_one_batch(vocab, assert_parity):
    logits = torch.randn(6, vocab)
    fusions = list(KINDS.values())
    members = Members.of(fusions, logits.device)
    fused, weights = fuse(logits, members)
    assert weights.tolist() == pytest.approx([w for f in fusions for w in f.weights])
    wide = logits.double().cpu().numpy()
    expected = torch.from_numpy(np.stack([by_formula(wide, f) for f in fusions]))
    compare(fused, expected)
    compare(expected, fuse_reference(exact(logits), members, weights))
    whole = [i for i, f in enumerate(fusions) if not f.plausible and f.nucleus == 1]
    assert_parity(fused[whole], expected.to(fused.device)[whole])


@pytest.mark.triton
@pytest.mark.parametrize("kind", KINDS)
def test_a_request_does_not_depend_on_the_others(kind):
    logits = torch.randn(6, 300) * 4
    together, _ = fuse(logits, Members.of(list(KINDS.values()), logits.device))
    alone, _ = fuse(logits, Members.of([KINDS[kind]], logits.device))
    assert torch.equal(alone[0], together[list(KINDS).index(kind)])


@pytest.mark.triton
def test_banned_tokens():
    """By any member that counts; in a mixture by all of them."""
    logits = torch.randn(3, 50)
    logits[0, 3] = logits[1, 3] = logits[1, 4] = logits[2, 5] = float("-inf")
    fusions = [
        Fusion(rows=(0, 1, 2), weights=(1.0, -0.5, 0.0)),
        Fusion(rows=(0, 1), weights=(0.5, 0.5), mixture=True),
    ]
    fused, weights = fuse(logits, Members.of(fusions, logits.device))
    assert fused[0].isneginf().nonzero().flatten().tolist() == [3, 4]
    assert fused[1].isneginf().nonzero().flatten().tolist() == [3]
    assert not fused.isnan().any()
    compare(fused, fuse_reference(exact(logits), Members.of(fusions, logits.device), weights))


@pytest.mark.triton
def test_rows_that_lie_apart():
    wide = torch.full((3, 80), float("nan"))
    wide[:, :64] = torch.randn(3, 64)
    fusions = [Fusion(rows=(2, 0), weights=(1.0, 0.5), plausible=0.1)]
    members = Members.of(fusions, wide.device)
    found, weights = fuse(wide[:, :64], members)
    compare(found, fuse_reference(exact(wide[:, :64]), members, weights))


@pytest.mark.triton
def test_dynamic_weights_are_applied():
    logits = torch.randn(4, 300) * 3
    fusions = [
        Fusion(rows=(3, 1), weights=(1.0, 0.5)),
        Fusion(rows=(0, 1, 2), limit=2.0),
    ]
    fused, weights = fuse(logits, Members.of(fusions, logits.device))
    assert weights[:3].tolist() == [1.0, 0.5, 1.0]
    assert weights[4] == -weights[3]
    assert 0 < weights[4] <= 2
    compare(fused[1], (logits[0] + weights[4] * (logits[2] - logits[1])).double())


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": (1.0,)},
        {"weights": (1.0, 1.0), "temperatures": (1.0,)},
        {"weights": (1.0, -1.0), "mixture": True},
        {"limit": 2.0},
    ],
    ids=str,
)
def test_what_cannot_be_combined_is_refused(wrong):
    with pytest.raises(ValueError, match=r"."):
        Fusion(rows=(0, 1), **wrong)
