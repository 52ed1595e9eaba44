import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from turret_kernels import gpu
from turret_kernels.sampling import sample, sample_reference, uniforms

CASES = {
    "plain": {},
    "cold": {"temperature": 0.3},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.2},
    "all": {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    "top_k=1": {"top_k": 1},
    "tiny top_p": {"top_p": 1e-6},
}


def draw(logits, uniform, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    rows = logits.shape[0]
    return sample(
        logits,
        torch.full((rows,), float(temperature)),
        torch.full((rows,), top_k),
        torch.full((rows,), float(top_p)),
        torch.full((rows,), float(min_p)),
        uniform,
    )


def kept_by_transformers(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Probabilities after transformers' own processors, in its order."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(float(top_p)))
    if min_p:
        warpers.append(MinPLogitsWarper(float(min_p)))
    return torch.softmax(warpers(torch.zeros(1, 1, dtype=torch.long), logits.clone()), dim=-1)


@pytest.mark.parametrize("case", CASES)
def test_frequencies_are_those_of_transformers(case):
    torch.manual_seed(0)
    logits = torch.randn(1, 200) * 2
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    drawn = draw(logits.expand(20_000, -1), grid, **CASES[case])
    found = torch.bincount(drawn, minlength=200) / 20_000
    expected = kept_by_transformers(logits, **CASES[case])[0]
    # An even grid of 20,000 points meets each interval within one point.
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


def random_settings(rows, generator):
    def rand():
        return torch.rand(rows, generator=generator, device="cpu")

    return (
        torch.where(rand() < 0.2, 0.0, rand() * 2 + 0.05),
        torch.where(rand() < 0.5, 0, (rand() * 40).long() + 1),
        torch.where(rand() < 0.5, 1.0, rand() * 0.98 + 0.01),
        torch.where(rand() < 0.5, 0.0, rand() * 0.5),
        torch.rand(rows, dtype=torch.float64, generator=generator, device="cpu"),
    )


def random_rows(rows, vocab, spread):
    """Logits, some of them banned, and settings."""
    generator = torch.Generator("cpu").manual_seed(vocab)
    logits = torch.randn(rows, vocab, generator=generator, device="cpu") * spread
    logits[logits < -spread * 2] = float("-inf")
    return logits, random_settings(rows, generator)


def on(device, *tensors):
    return [t.to(device) for t in tensors]


SPREADS = [0.5, 3.0, 12.0]
if gpu.INTERPRETED:
    ROWS, SIZES = 12, [(1, 3.0), (100, 12.0), (1003, 3.0), (5000, 0.5)]
else:
    ROWS, SIZES = 400, [(v, s) for v in (1, 5, 16, 100, 1003, 5000) for s in SPREADS]


@pytest.mark.triton
@pytest.mark.parametrize(("vocab", "spread"), SIZES)
def test_matches_the_reference(vocab, spread):
    logits, settings = random_rows(ROWS, vocab, spread)
    device = torch.empty(0).device
    found = sample(*on(device, logits, *settings)).cpu()
    # float32 exponentials: a draw within 1e-6 of an edge may fall on the other side of it.
    assert (found != sample_reference(logits, *settings)).sum() <= ROWS // 200


@pytest.mark.triton
def test_of_equal_logits_the_first_are_kept():
    logits, settings = random_rows(ROWS, 1500, 2.0)
    logits = (logits * 2).round() / 2  # some 20 values
    device = torch.empty(0).device
    found = sample(*on(device, logits, *settings)).cpu()
    assert (found != sample_reference(logits, *settings)).sum() <= ROWS // 200
    # Of 1500 equals top-k keeps 700, and top-p the first half of those.
    even = on(device, torch.zeros(1, 1500), *(torch.tensor([v]) for v in (1.0, 700, 0.5, 0.0)))
    for uniform, token in [(0.0, 0), (0.5, 175), (1 - 1e-12, 349)]:
        assert sample(*even, torch.tensor([uniform], dtype=torch.float64)) == token


@pytest.mark.triton
@pytest.mark.parametrize(
    ("filters", "uniform", "token"),
    [
        ({"top_k": 3}, 0.25, 5),  # of 0, 1 and 5, which weigh 1, 1 and 7.4
        ({"top_p": 0.5}, 1 - 1e-12, 146),  # half of 306.4: 7.4 and 146 of the others
        ({"top_k": 101, "top_p": 0.9}, 1 - 1e-12, 90),  # 96.6 of 107.4: 7.4 and 90 others
    ],
    ids=str,
)
def test_equals_count_from_what_lies_above_them(filters, uniform, token):
    logits = torch.zeros(1, 300)
    logits[0, 5] = 2.0
    assert draw(logits, torch.tensor([uniform], dtype=torch.float64), **filters) == token


@pytest.mark.triton
@pytest.mark.parametrize("passes", [0, 2])
def test_a_search_that_needs_more_passes_is_finished(passes, monkeypatch):
    if gpu.INTERPRETED or torch.cuda.is_available():
        monkeypatch.setattr("turret_kernels.gpu.sampling._PASSES", passes)
    logits, settings = random_rows(8, 1003, 3.0)
    device = torch.empty(0).device
    found = sample(*on(device, logits, *settings)).cpu()
    assert torch.equal(found, sample_reference(logits, *settings))


@pytest.mark.triton
def test_settings_may_be_on_the_host():
    logits, settings = random_rows(8, 300, 3.0)
    logits = logits.to(torch.empty(0).device)
    expected = sample_reference(logits.cpu(), *settings)
    assert torch.equal(sample(logits, *settings).cpu(), expected)


@pytest.mark.triton
@pytest.mark.parametrize("filters", [{}, {"min_p": 0.3}], ids=["none", "min_p"])
def test_batches_in_which_nothing_is_searched_for(filters):
    logits = torch.randn(4, 2000)
    logits[:, 700] = logits[:, 900] = 9.0  # of equals the first is taken
    uniform = torch.tensor([0.01, 0.49, 0.51, 0.99], dtype=torch.float64)
    assert draw(logits, uniform, temperature=0, **filters).eq(700).all()
    assert draw(logits, uniform, temperature=0.1, **filters).tolist() == [700, 700, 900, 900]


@pytest.mark.triton
def test_rows_have_settings_of_their_own():
    logits = torch.randn(3, 50)
    out = sample(
        logits,
        torch.tensor([1.0, 0.01, 1.0]),
        torch.tensor([1, 0, 3]),
        torch.ones(3),
        torch.zeros(3),
        torch.tensor([0.99, 0.5, 0.999999], dtype=torch.float64),
    )
    top = logits.topk(3, dim=-1).indices
    assert out.tolist() == [top[0, 0], top[1, 0], top[2].max()]  # in the order of the vocabulary


@pytest.mark.triton
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_banned_tokens_are_never_drawn(filters):
    logits = torch.full((3, 10), float("-inf"))
    logits[:, 4] = 0.0
    uniform = torch.tensor([0.0, 0.5, 1 - 1e-16], dtype=torch.float64)
    assert draw(logits, uniform, **filters).eq(4).all()


@pytest.mark.triton
def test_a_row_does_not_depend_on_the_others():
    logits, u = torch.randn(8, 500), torch.rand(8, dtype=torch.float64)
    whole = draw(logits, u, top_p=0.9)
    alone = torch.cat([draw(logits[i : i + 1], u[i : i + 1], top_p=0.9) for i in range(8)])
    assert torch.equal(whole, alone)


def test_uniforms_depend_on_seed_and_position_only_and_are_even():
    many = uniforms([3] * 5000, list(range(5000)))
    assert torch.equal(many[17:18], uniforms([3], [17]))
    assert not torch.equal(many[:10], uniforms([4] * 10, list(range(10))))
    assert many.min() >= 0
    assert many.max() < 1
    counts = torch.histc(many.float(), 10, 0, 1)
    assert counts.min() > 400
    # By hand, in Python's integers: a seed means the same tokens for ever.
    seeds, positions = [0, 3, -1, 2**63, 2**64 + 3], [0, 17, 0, 1, 17]
    draws = [
        _splitmix(_splitmix(s % 2**64) ^ p) >> 11 for s, p in zip(seeds, positions, strict=True)
    ]
    assert uniforms(seeds, positions).tolist() == [draw / 2**53 for draw in draws]


def _splitmix(z):
    z = (z + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)
