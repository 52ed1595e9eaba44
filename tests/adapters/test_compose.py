"""Derived adapters: as PEFT's add_weighted_adapter computes them, and as the formulas say."""

import itertools
import warnings
from dataclasses import replace

import numpy as np
import peft.utils.merge_utils as peft_merges
import pytest
import torch
from peft import PeftModel

from turret_adapters import compose as module
from turret_adapters.components import LowRank, Offset
from turret_adapters.compose import compose
from turret_adapters.derivation import METHODS, Derivation, Source, derivation
from turret_adapters.errors import AdapterChanged, AdapterForbidden, AdapterUnsupported
from turret_adapters.loading import read_adapter
from turret_adapters.spec import Module, Positions, Program, Site
from turret_adapters.store import AdapterStore, StoreLimits

SITE = Site(0, Module.Q)
WEIGHTS = (0.75, -0.5, 1.5)


def derive(method, *weights, **options):
    sources = [Source(f"a{i}", w) for i, w in enumerate(weights)]
    return derivation(method, sources, options)


def programs(*ranks, shape=(24, 16), scale=None, sites=(SITE,)):
    torch.manual_seed(0)
    return [
        Program(
            "lora",
            tuple(
                LowRank(
                    site,
                    torch.randn(r, shape[1]),
                    torch.randn(r, shape[0]),
                    published_scale=scale,
                )
                for site in sites
            ),
            base_model="tiny",
        )
        for r in ranks
    ]


def delta(program, site=SITE):
    return sum(c.b.T @ c.a for c in program.components if c.site == site)


def merged(method, sources, *weights, **options):
    return delta(compose(sources, derive(method, *weights, **options)))


def close(x, y, tolerance=2e-5):
    torch.testing.assert_close(x, y, atol=tolerance * float(y.abs().max()), rtol=0)


# ------------------------------------------------------------------ against PEFT


@pytest.fixture(scope="module")
def peft_folders(lab, tmp_path_factory):
    """Three adapters of different alpha, the last without layer 2."""
    root = tmp_path_factory.mktemp("peft")
    for i, layers in enumerate([[0, 1, 2], [0, 1, 2], [0, 1]]):
        lab.save_lora(
            root / f"a{i}",
            r=4,
            lora_alpha=4 * (i + 1),
            target_modules=["q_proj", "down_proj"],
            layers_to_transform=layers,
        )
        torch.manual_seed(10 + i)
        lab.edit_tensors(
            root / f"a{i}", lambda t: {k: v + 0.2 * torch.randn_like(v) for k, v in t.items()}
        )
    return [root / f"a{i}" for i in range(3)]


@pytest.fixture
def peft_deltas(lab, peft_folders):
    """What PEFT makes of the three, by site."""

    def deltas(combination_type, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(lab.make_base(), str(peft_folders[0]), "a0")
            for i in (1, 2):
                model.load_adapter(str(peft_folders[i]), f"a{i}")
            model.add_weighted_adapter(
                ["a0", "a1", "a2"], list(WEIGHTS), "new", combination_type, **options
            )
        found = {}
        for layer, name in itertools.product(range(3), ("q_proj", "down_proj")):
            site = Site(layer, Module(name))
            linear = lab.module_of(model.base_model.model, site)
            found[site] = linear.get_delta_weight("new").detach()
        return found

    return deltas


def ours(peft_folders, shape, method, **options):
    sources = [Source(str(p), w) for p, w in zip(peft_folders, WEIGHTS, strict=True)]
    recipe = derivation(method, sources, options)
    _, program = read_adapter(recipe, shape, torch.float32)
    assert program.kind == "derived"
    return {c.site: c.b.T @ c.a for c in program.components}


@pytest.mark.parametrize(
    ("method", "combination_type", "options"),
    [
        ("sum", "cat", {}),
        ("peft-linear", "linear", {}),
        ("svd", "svd", {"rank": 3}),
        ("ties", "ties_svd", {"density": 0.3, "rank": 7}),
        ("magnitude_prune", "magnitude_prune_svd", {"density": 0.4, "rank": 7}),
    ],
)
def test_peft_computes_the_same(
    peft_deltas, peft_folders, shape, method, combination_type, options
):
    theirs = {"svd_rank": options["rank"]} if "rank" in options else {}
    if "density" in options:
        theirs["density"] = options["density"]
    want = peft_deltas(combination_type, **theirs)
    got = ours(peft_folders, shape, method, **options)
    assert got.keys() == want.keys()
    # Where two singular values are close, which vectors the cut keeps amplifies rounding.
    tolerance = 1e-3 if "rank" in options else 2e-5
    for site, value in want.items():
        close(got[site], value, tolerance)


@pytest.mark.parametrize("method", ["dare", "dare_ties"])
def test_peft_computes_the_same_when_it_drops_the_same(
    monkeypatch, peft_deltas, peft_folders, shape, method
):
    """PEFT draws from torch, we from a generator of our own: here PEFT uses our draws."""
    drawn = []
    draw = module._drop

    def record(delta, density, random):
        state = random.bit_generator.state
        kept = random.random(delta.shape, dtype=np.float32) < density
        drawn.append(torch.from_numpy(kept).float())
        random.bit_generator.state = state
        return draw(delta, density, random)

    monkeypatch.setattr(module, "_drop", record)
    got = ours(peft_folders, shape, method, density=0.4, rank=9, seed=5)
    # Ours by site, sorted by name; PEFT walks the model: q_proj before down_proj.
    by_site, left = {}, list(drawn)
    for site in got:
        count = 2 if site.layer == 2 else 3
        by_site[site], left = left[:count], left[count:]
    order = [Site(i, m) for i in range(3) for m in (Module.Q, Module.DOWN)]
    queue = [kept for site in order for kept in by_site[site]]
    monkeypatch.setattr(peft_merges.torch, "bernoulli", lambda input: queue.pop(0).to(input.dtype))
    combination_type = {"dare": "dare_linear_svd", "dare_ties": "dare_ties_svd"}[method]
    want = peft_deltas(combination_type, density=0.4, svd_rank=9)
    assert not queue
    for site, value in want.items():
        close(got[site], value, 1e-3)


# ------------------------------------------------------------------ against the formulas


def test_sum_is_exact_for_any_ranks_and_sites():
    one, two = programs(3, 5)
    other = Site(1, Module.Q)
    two = replace(two, components=(*two.components, replace(two.components[0], site=other)))
    result = compose([one, two], derive("sum", 2.0, -0.5))
    close(delta(result), 2 * delta(one) - 0.5 * delta(two))
    close(delta(result, other), -0.5 * delta(two, other))
    assert [c.rank for c in result.components] == [8, 5]
    assert result.base_model == "tiny"


def test_components_of_one_site_are_one_change():
    one, two = programs(3, 5)
    both = replace(one, components=one.components + two.components)
    close(merged("svd", [both], 2.0), 2 * (delta(one) + delta(two)))


def test_svd_is_the_best_of_its_rank_and_says_what_it_drops():
    sources = programs(6, 6)
    result = compose(sources, derive("svd", 1.0, 0.5, rank=4))
    whole = delta(sources[0]) + 0.5 * delta(sources[1])
    values = torch.linalg.svdvals(whole)
    lost = values[4:].norm() / values.norm()
    assert (whole - delta(result)).norm() / whole.norm() == pytest.approx(lost.item(), rel=1e-4)
    assert f"at worst {lost:.1%} (layers.0.q_proj)" in result.notes[1]
    exact = compose(sources, derive("svd", 1.0, 0.5))
    close(delta(exact), whole)
    assert exact.rank == 12
    assert len(exact.notes) == 1


def test_svd_needs_no_rank_for_what_is_there_twice():
    (source,) = programs(3)
    result = compose([source, source], derive("svd", 1.0, 1.0))
    assert result.rank == 3
    close(delta(result), 2 * delta(source))


def test_what_cancels_is_nothing():
    (source,) = programs(3)
    assert merged("svd", [source, source], 1.0, -1.0).abs().max() < 1e-5
    assert merged("ties", [source, source], 1.0, -1.0, density=0.5).abs().max() < 1e-5


def test_lorax_linear_squares_the_weights_and_takes_the_first_scale():
    one = programs(4, scale=2.0)[0]
    two = replace(one, components=(replace(one.components[0], published_scale=0.5),))
    got = merged("lorax-linear", [one, two], 0.5, 3.0)
    a, b = one.components[0].a, one.components[0].b
    factor_b = 0.5 * b / 2.0 + 3.0 * b / 0.5  # published B = b / scale
    close(got, 2.0 * factor_b.T @ (3.5 * a))


def test_ties_by_hand():
    """Each entry on its own: rank is enough for the whole matrix."""
    rows = [
        torch.tensor([[5.0, -4.0, 1.0, 3.0]]),
        torch.tensor([[-2.0, -3.0, 9.0, 0.5]]),
    ]
    sources = [Program("lora", (LowRank(SITE, row, torch.ones(1, 1)),)) for row in rows]
    # top half: [5, -4, 0, 0] and [0, -3, 9, 0]; signs + - + +; weights 2 and 1
    close(merged("ties", sources, 2.0, 1.0, density=0.5), torch.tensor([[10.0, -5.5, 9.0, 0.0]]))


def test_breadcrumbs_by_hand():
    row = torch.tensor([[1.0, -8.0, 3.0, 5.0, -2.0, 0.5, 4.0, -6.0, 0.1, 0.2]])
    source = Program("lora", (LowRank(SITE, row, torch.ones(1, 1)),))
    got = merged("breadcrumbs", [source], 2.0, density=0.3, gamma=0.1)
    want = torch.tensor([[0, 0, 0, 10.0, 0, 0, 8.0, -12.0, 0, 0]])
    close(got, want)


def test_dare_keeps_the_expectation_and_is_seeded():
    sources = programs(4, shape=(200, 100))
    draws = [merged("dare", sources, 1.0, density=0.5, rank=100, seed=i) for i in range(40)]
    again = merged("dare", sources, 1.0, density=0.5, rank=100, seed=3)
    torch.testing.assert_close(draws[3], again, rtol=0, atol=0)
    want = delta(sources[0])
    kept = draws[0].abs() > 1e-3
    assert kept.float().mean() == pytest.approx(0.5, abs=0.02)
    close(draws[0][kept], 2 * want[kept], 1e-4)
    mean = torch.stack(draws).mean(0)
    assert (mean - want).norm() / want.norm() == pytest.approx(40**-0.5, rel=0.1)


def test_large_matrices_are_cut_nearly_as_well(monkeypatch):
    torch.manual_seed(0)
    whole = torch.randn(300, 200)
    sparse = torch.where(whole.abs() > 1.2, whole, 0.0)
    random = np.random.Generator(np.random.PCG64(0))
    *_, norm, best = module._cut(sparse, 12, random)
    monkeypatch.setattr(module, "_EXACT_SVD", 100)
    a, b, _, lost = module._cut(sparse, 12, random)
    assert a.shape == (12, 200)
    assert best <= lost * (1 + 1e-6)
    assert lost < best * 1.005  # a flat spectrum is the hardest case
    assert (sparse - b.T @ a).square().sum().item() == pytest.approx(lost, rel=1e-4)
    assert norm > lost


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda p: {"components": (*p.components, Offset(SITE, torch.ones(24)))}, "Offset"),
        (lambda p: {"components": (replace(p.components[0], num_experts=2),)}, "mixture"),
        (lambda p: {"positions": Positions(first=3)}, "some positions"),
        (lambda p: {"num_virtual_tokens": 4}, "tokens before"),
    ],
)
@pytest.mark.parametrize("method", ["sum", "ties"])
def test_what_is_not_low_rank_everywhere_is_refused(change, why, method):
    one, two = programs(2, 2)
    two = replace(two, **change(two))
    options = {"density": 0.5} if method == "ties" else {}
    with pytest.raises(AdapterUnsupported, match=why) as caught:
        compose([one, two], derive(method, 1.0, 1.0, **options))
    assert "'a1'" in caught.value.why


@pytest.mark.parametrize("method", ["peft-linear", "lorax-linear"])
def test_compatibility_needs_the_published_factors(method):
    with pytest.raises(AdapterUnsupported, match="published factors"):
        compose(programs(4, 4), derive(method, 1.0, 1.0))
    with pytest.raises(AdapterUnsupported, match="ranks"):
        compose(programs(4, 5, scale=1.0), derive(method, 1.0, 1.0))


def test_lorax_linear_needs_the_same_sites():
    one = programs(4, scale=1.0)[0]
    two = programs(4, scale=1.0, sites=(SITE, Site(1, Module.Q)))[0]
    with pytest.raises(AdapterUnsupported, match=r"layers\.1\.q_proj"):
        compose([one, two], derive("lorax-linear", 1.0, 1.0))


@pytest.mark.parametrize(
    ("method", "options", "why"),
    [
        ("blend", {}, "none of"),
        ("sum", {"rank": 3}, "no parameter"),
        ("svd", {"density": 0.5}, "takes rank"),
        ("ties", {}, "needs a density"),
        ("ties", {"density": 0}, "density"),
        ("ties", {"density": 1.1}, "density"),
        ("ties", {"density": "half"}, "density"),
        ("ties", {"density": True}, "density"),
        ("svd", {"rank": 0}, "rank"),
        ("svd", {"rank": 2.0}, "rank"),
        ("dare", {"density": 0.5, "seed": -1}, "seed"),
        ("breadcrumbs", {"density": 0.5, "gamma": 1}, "gamma"),
    ],
)
def test_a_bad_derivation_says_what_is_wrong(method, options, why):
    with pytest.raises(ValueError, match=why):
        derive(method, 1.0, **options)


@pytest.mark.parametrize("weights", [(), (float("nan"),), (17,), (1,) * 17])
def test_bad_sources(weights):
    with pytest.raises(ValueError):
        derive("sum", *weights)


def test_every_method_is_carried_out():
    sources = programs(4, 4, scale=1.0)
    for method, takes in METHODS.items():
        options = {"density": 0.5} if "density" in takes else {}
        assert merged(method, sources, 1.0, 1.0, **options).abs().max() > 0


# ------------------------------------------------------------------ identity and loading


def test_the_digest_covers_everything():
    base = Derivation(method="dare", sources=(Source("a"), Source("b")), density=0.5)
    digest = base.digest(["1", "2"])
    assert digest == replace(base, sources=(Source("x"), Source("y"))).digest(["1", "2"])
    others = [
        base.digest(["2", "1"]),
        base.digest(["1", "3"]),
        replace(base, method="dare_ties").digest(["1", "2"]),
        replace(base, density=0.25).digest(["1", "2"]),
        replace(base, rank=3).digest(["1", "2"]),
        replace(base, seed=1).digest(["1", "2"]),
        replace(base, sources=(Source("a", 0.5), Source("b"))).digest(["1", "2"]),
    ]
    assert len({digest, *others}) == 1 + len(others)
    unused = replace(base, gamma=0.5)
    assert unused.digest(["1", "2"]) == digest


def test_it_reads_as_written():
    recipe = derive("ties", 1.0, 0.5, density=0.25, rank=8)
    assert str(recipe) == "ties(a0, a1:0.5, density=0.25, rank=8)"


def test_the_store_loads_it_and_reads_it_again(peft_folders, shape):
    """A host cache of nothing: becoming resident a second time derives it anew."""
    sources = tuple(Source(str(p)) for p in peft_folders)
    recipe = Derivation(method="ties", sources=sources, density=0.5, rank=4)
    limits = StoreLimits(max_resident=1, max_rank_rows=32, max_host_bytes=1)
    store = AdapterStore(shape, limits, torch.device("cpu"), torch.float32)
    try:
        loaded = store.load(recipe).result(20)
        assert (loaded.kind, loaded.rank) == ("derived", 4)
        assert "its rank drops" in loaded.notes[1]
        assert store.load(recipe).result(20).digest == loaded.digest
        plain = store.load(peft_folders[0]).result(20)
        assert plain.digest != loaded.digest
        found, again = read_adapter(recipe, shape, torch.float32)
        assert found == loaded.digest
        assert again.num_bytes == loaded.num_bytes
    finally:
        store.close()


def test_a_source_is_what_is_served(peft_folders, shape):
    """Its folder may hold something else by now."""
    first = str(peft_folders[0])
    digest, _ = read_adapter(first, shape, torch.float32)
    read_adapter(
        Derivation(method="sum", sources=(Source(first, digest=digest),)), shape, torch.float32
    )
    stale = Derivation(method="sum", sources=(Source(first, digest="0" * 64),))
    with pytest.raises(AdapterChanged, match="another adapter now"):
        read_adapter(stale, shape, torch.float32)


def test_sources_are_read_below_their_own_roots(peft_folders, shape, tmp_path):
    first, second = map(str, peft_folders[:2])
    outside = Derivation(
        method="sum", sources=(Source(first), Source(second, roots=(str(tmp_path / "other"),)))
    )
    with pytest.raises(AdapterForbidden):
        read_adapter(outside, shape, torch.float32)
    inside = Derivation(method="sum", sources=(Source(first, roots=(first,)), Source(second)))
    assert read_adapter(inside, shape, torch.float32)[1] is not None
