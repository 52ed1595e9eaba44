"""What holds for every kind: it is served as its own library computes it, and nothing is silent."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.kinds.lab import CASES, PROMPTS, Lab, assert_same, base_reference

from turret_adapters.errors import AdapterError
from turret_adapters.files import AdapterFiles
from turret_adapters.registry import detect
from turret_server.engine.messages import AdapterUse

EVERY = [pytest.param(c, base, id=f"{c.name}-{base}") for c in CASES for base in c.bases]
# What a file must hold is asked on one base for Gemma's sake; its norms change nothing about it.
STORED = [
    param
    for param in EVERY
    if (case := param.values[0]).stores_tensors
    and (param.values[1] != "gemma" or case.bases == ("gemma",))
]


@pytest.fixture
def made(request, labs, tmp_path):
    """The lab, the case, its folder and its reference."""
    case, base = request.param
    lab = labs(base)
    folder = tmp_path / "adapter"
    return lab, case, folder, case.make(folder, lab.model())


def over(params):
    return pytest.mark.parametrize(
        "made", [pytest.param(p.values, id=p.id, marks=p.marks) for p in params], indirect=True
    )


def one_of_each(params):
    """Marks the first case of every kind, and the first on Gemma.

    With TRITON_INTERPRET=1 the whole engine then runs through the Triton kernels, seconds a case.
    """
    seen = set()
    for p in params:
        case, base = p.values
        key = case.kind, base == "gemma"
        is_first = key not in seen
        seen.add(key)
        yield pytest.param(*p.values, id=p.id, marks=pytest.mark.triton) if is_first else p


@over(one_of_each(EVERY))
def test_it_computes_what_its_library_computes(made):
    """In one batch with the base; what the adapter does must show, and the base must not move."""
    lab, case, folder, reference = made
    loaded = lab.load(folder)
    assert loaded.kind == case.kind
    base = base_reference(lab.model())
    requests = [lab.ask(p, *use) for p in PROMPTS for use in ((AdapterUse(loaded.digest),), ())]
    answers = lab.run(requests)
    for answer in answers[::2]:
        assert_same(answer, reference)
    for answer in answers[1::2]:
        assert_same(answer, base)
    tokens = torch.tensor(PROMPTS[0])
    assert (reference(tokens) - base(tokens)).abs().max() > 1e-2, "the case shows nothing"
    lab.unload(loaded)


@over(EVERY)
def test_weight_zero_is_the_base(made):
    lab, _, folder, _ = made
    loaded = lab.load(folder)
    (answer,) = lab.run([lab.ask(PROMPTS[0], AdapterUse(loaded.digest, 0.0))])
    assert_same(answer, base_reference(lab.model()))
    lab.unload(loaded)


@over(EVERY)
def test_it_leaves_no_trace(made):
    """Another adapter's slot after it, and the base."""
    lab, _, folder, _ = made
    loaded = lab.load(folder)
    lab.run([lab.ask(PROMPTS[1], AdapterUse(loaded.digest))])
    lab.unload(loaded)
    (answer,) = lab.run([lab.ask(PROMPTS[1])])
    assert_same(answer, base_reference(lab.model()))
    assert loaded.digest not in lab.engine.store.loaded()


def weights_of(folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    return found[0]


def refused(lab: Lab, folder: Path, why: str) -> None:
    with pytest.raises(AdapterError) as caught:
        lab.load(folder)
    error = caught.value
    assert all((error.what, error.why, error.fix)), why


@over(STORED)
def test_no_tensor_may_be_missing(made, tmp_path):
    lab, case, folder, _ = made
    tensors = load_file(weights_of(folder))
    for key in tensors:
        if any(part in key for part in case.may_lack):
            continue
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        rest = {k: t for k, t in tensors.items() if k != key}
        save_file(rest, weights_of(copy))
        refused(lab, copy, f"without {key}")
        shutil.rmtree(copy)


@over(STORED)
@pytest.mark.parametrize("damage", ["nan", "inf", "taller", "wider", "flat", "integers"])
def test_no_tensor_may_be_damaged(made, tmp_path, damage):
    lab, _, folder, _ = made
    tensors = load_file(weights_of(folder))
    for key, tensor in tensors.items():
        if damage in ("nan", "inf") and not tensor.is_floating_point():
            continue
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        save_file(tensors | {key: damaged(tensor, damage)}, weights_of(copy))
        refused(lab, copy, f"{key}: {damage}")
        shutil.rmtree(copy)


def damaged(tensor: torch.Tensor, how: str) -> torch.Tensor:
    if how in ("nan", "inf"):
        tensor = tensor.clone()
        tensor.view(-1)[-1] = float(how)
        return tensor
    if how == "taller":
        return torch.cat([tensor, tensor[-1:]]) if tensor.dim() else tensor[None].expand(2).clone()
    if how == "wider":
        return torch.cat([tensor, tensor[..., -1:]], dim=-1) if tensor.dim() else tensor[None]
    if how == "flat":
        return torch.cat([tensor.reshape(-1), tensor.reshape(-1)[:1]])
    other = torch.int16 if not tensor.is_floating_point() else torch.int64
    return tensor.to(other)


@over(STORED)
def test_nothing_stored_is_ignored(made):
    lab, _, folder, _ = made
    path = weights_of(folder)
    save_file(load_file(path) | {"base_model.model.stranger.weight": torch.ones(2)}, path)
    refused(lab, folder, "a stranger")


@over(STORED)
def test_a_truncated_file_is_refused(made):
    lab, _, folder, _ = made
    path = weights_of(folder)
    path.write_bytes(path.read_bytes()[:-7])
    refused(lab, folder, "truncated")


@over(EVERY)
def test_another_base_is_refused(made):
    """The same adapter on a base with fewer layers, or what the case calls another base."""
    lab, case, folder, _ = made
    other = case.misfit(lab.engine.decoder.shape)
    with AdapterFiles.open(folder) as files, pytest.raises(AdapterError) as caught:
        detect(files).compile(files, other)
    assert caught.value.why
