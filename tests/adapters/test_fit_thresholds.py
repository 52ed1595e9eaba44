"""Fitting CATS and TEAL on a tiny model."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tests.kinds.cases.cats import Thresholded
from tests.kinds.lab import BASES
from transformers import AutoModelForCausalLM

from turret_adapters.errors import AdapterError
from turret_adapters.files import AdapterFiles
from turret_adapters.fit.cats import fit_cats, num_steps, watching
from turret_adapters.fit.quantiles import Magnitudes, Refined
from turret_adapters.fit.teal import LINEARS, _Block, _calibrate, fit_teal
from turret_adapters.fit.teal import num_steps as num_teal_steps
from turret_adapters.fit.text import TextWindows, perplexity, read_windows
from turret_adapters.registry import detect
from turret_adapters.spec import ModelShape


@pytest.fixture(scope="module", params=["llama", "gemma"])  # SiLU and GELU
def model(request):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(BASES[request.param]()).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    return model


@pytest.fixture(scope="module")
def text():
    torch.manual_seed(2)
    windows = list(torch.randint(0, 128, (8, 48)))
    return TextWindows(windows[:6], windows[6:])


@pytest.mark.parametrize("share", [0.001, 0.3, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantiles_are_exact(share, dtype):
    torch.manual_seed(0)
    values = (torch.randn(1000) * torch.logspace(-6, 3, 1000)).to(dtype)
    values[:40] = 0
    coarse = Magnitudes()
    for part in values.split(77):
        coarse.add(part)
    exact = Refined(coarse, share)
    for part in values.split(77):
        exact.add(part)
    rank = max(1, round(share * 1000))
    assert exact.value == float(values.abs().float().sort().values[rank - 1])
    assert coarse.quantile(share) == pytest.approx(exact.value, rel=2**-6, abs=1e-30)
    assert coarse.count == 1000


def test_nothing_is_below_the_quantile_of_nothing():
    coarse = Magnitudes()
    coarse.add(torch.randn(100))
    assert coarse.quantile(0) == 0


def test_cats_thresholds_are_quantiles(model, text):
    steps = []
    fit = fit_cats(model, text, 0.5, steps.append)
    assert len(steps) == num_steps(text)
    seen = [[] for _ in fit.thresholds]

    def keep(layer, act):
        seen[layer].append(act.abs().flatten())
        return act

    with watching(model, keep), torch.no_grad():
        for window in text.fitted:
            model(window[None])
    for threshold, parts in zip(fit.thresholds, seen, strict=True):
        values = torch.cat(parts)
        assert threshold == float(values.kthvalue(len(values) // 2).values)
    assert all(0.4 < share < 0.6 for share in fit.sparsity)
    assert all(both < share for share, both in zip(fit.sparsity, fit.shared, strict=True))


def test_cats_perplexities(model, text):
    fit = fit_cats(model, text, 0.7, lambda stage: None)
    assert fit.perplexity_before == pytest.approx(
        perplexity(model, text.held_out, "", lambda stage: None)
    )
    originals = [layer.mlp.act_fn for layer in model.model.layers]
    for layer, threshold in zip(model.model.layers, fit.thresholds, strict=True):
        layer.mlp.act_fn = Thresholded(layer.mlp.act_fn, threshold)
    after = perplexity(model, text.held_out, "", lambda stage: None)
    for layer, original in zip(model.model.layers, originals, strict=True):
        layer.mlp.act_fn = original
    assert fit.perplexity_after == pytest.approx(after, rel=1e-5)
    assert fit.perplexity_after != pytest.approx(fit.perplexity_before, rel=1e-4)


def test_teal_reaches_its_target(model, text):
    steps = []
    fit = fit_teal(model, text, 0.3, steps.append, step_size=0.2)
    assert len(steps) == num_teal_steps(model, text)
    assert fit.thresholds.keys() == set(LINEARS)
    assert fit.weighted_sparsity == pytest.approx(0.3, abs=0.06)
    assert fit.perplexity_after != pytest.approx(fit.perplexity_before, rel=1e-4)
    assert fit.perplexity_after != pytest.approx(fit.perplexity_even, rel=1e-4)
    # The model is as it was.
    again = perplexity(model, text.held_out, "", lambda stage: None)
    assert again == pytest.approx(fit.perplexity_before)


def test_teal_cuts_first_what_costs_nothing(model, text):
    """A block whose attention writes nothing: its weights are 40% of the block's."""
    changed = copy.deepcopy(model)
    changed.model.layers[1].self_attn.o_proj.weight.data.zero_()
    fit = fit_teal(changed, text, 0.3, str, step_size=0.2)
    of_block = {name: fit.thresholds[name][1] for name in LINEARS}
    assert [name for name, threshold in of_block.items() if threshold == 0] == list(LINEARS[4:])
    assert all(fit.thresholds[name][0] > 0 for name in ("gate_proj", "up_proj"))


def judged(model, layer, window):
    """What a block gives for the last quarter of a window."""
    found = []
    block = model.model.layers[layer]
    handle = block.register_forward_hook(lambda module, args, out: found.append(out))
    model(window[None])
    handle.remove()
    return (found[0][0] if isinstance(found[0], tuple) else found[0])[..., -len(window) // 4 :, :]


@pytest.mark.parametrize("layer", range(3))
def test_teal_errs_less_than_an_even_cut(model, text, layer):
    """At the block's output, on the tokens that the allocation looked at."""
    block = _Block(model.model.layers[layer])
    with torch.inference_mode():
        _calibrate(model, [block], text.fitted, 1, str)
        window = text.fitted[-1]
        wanted = judged(model, layer, window)
        block.allocate(0.4, 0.05)
        with block.cutting():
            greedy = (judged(model, layer, window) - wanted).norm()
            cut = [(block.sizes[name], block.cuts[name].zeros) for name in LINEARS]
            block.cut_evenly(0.4)
            even = (judged(model, layer, window) - wanted).norm()
    assert greedy < even
    share = sum(size * zeros for size, zeros in cut) / sum(block.sizes.values())
    assert share == pytest.approx(0.4, abs=0.02)


def test_what_is_fitted_can_be_served(model, text, tmp_path):
    fits = fit_cats(model, text, 0.5, str), fit_teal(model, text, 0.2, str, step_size=0.3)
    for fit in fits:
        (tmp_path / "turret_adapter.json").write_text(json.dumps(fit.config("tiny")))
        with AdapterFiles.open(tmp_path) as files:
            kind = detect(files)
            shape = kind.guess_shape(files)
            program = kind.compile(files, ModelShape(3, shape.dims))
        assert program.primitives == ["Threshold"]
        assert program.base_model == "tiny"


@pytest.mark.parametrize("sparsity", [0, 1, -0.5, 50])
def test_sparsities_that_make_no_sense(model, text, sparsity):
    for fit in (fit_cats, fit_teal):
        with pytest.raises(AdapterError, match="between 0 and 1"):
            fit(model, text, sparsity, str)


class Letters:
    """A tokenizer: one id per character."""

    def __call__(self, piece: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) % 128 for c in piece]}


def test_windows(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {i}\n" for i in range(20_000)))
    windows = read_windows(Letters(), path, length=100, max_tokens=5_050)
    assert (len(windows.fitted), len(windows.held_out)) == (45, 5)
    together = read_windows(Letters(), path, length=len(path.read_text()) // 2, max_tokens=10**9)
    ids = torch.cat([*together.fitted, *together.held_out]).tolist()
    assert ids == Letters()(path.read_text())["input_ids"]


def test_too_little_text(tmp_path):
    (tmp_path / "short.txt").write_text("few")
    with pytest.raises(AdapterError, match="3 tokens"):
        read_windows(Letters(), tmp_path / "short.txt", length=2)
    with pytest.raises(AdapterError, match="No such file"):
        read_windows(Letters(), tmp_path / "missing.txt")
