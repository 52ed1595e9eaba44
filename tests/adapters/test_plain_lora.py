"""LoRA files with one header: the second is read by the layout of the first, to equal effect."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from turret_adapters.errors import AdapterMalformed
from turret_adapters.kinds import lora
from turret_adapters.peft.plain_lora import Layouts, PlainLayout
from turret_adapters.spec import LINEARS

WEIGHTS = "adapter_model.safetensors"
SETTINGS = {
    "target_modules": [*map(str, LINEARS), "embed_tokens"],
    "r": 4,
    "lora_alpha": 6,
    "rank_pattern": {"q_proj": 3},
}


@pytest.fixture(autouse=True)
def layouts(monkeypatch):
    """Nothing is remembered from other tests; counts what is read by a layout."""
    monkeypatch.setattr(lora, "_layouts", Layouts())
    read, reads = PlainLayout.program, []

    def program(self, file):
        reads.append(read(self, file))
        return reads[-1]

    monkeypatch.setattr(PlainLayout, "program", program)
    return reads


@pytest.fixture
def shape(lab):
    return lab.make_shape(lab.make_base())


def save(lab, path, seed, **settings):
    """An adapter; seeds differ in the numbers alone."""
    lab.save_lora(path, **{**SETTINGS, **settings})
    numbers = torch.Generator().manual_seed(seed)
    tensors = {
        # PEFT stores the base's embedding beside its factors; without it the file is plain.
        key: torch.randn(value.shape, generator=numbers)
        for key, value in load_file(path / WEIGHTS).items()
        if "base_layer" not in key and not key.endswith("embed_tokens.weight")
    }
    save_file(tensors, path / WEIGHTS)
    return path


def assert_same(found, wanted):
    assert len(found.components) == len(wanted.components)
    for one, other in zip(found.components, wanted.components, strict=True):
        assert (one.site, one.published_scale) == (other.site, other.published_scale)
        assert torch.equal(one.a, other.a)
        assert torch.equal(one.b, other.b)
        assert (one.a.dtype, one.b.dtype) == (other.a.dtype, other.b.dtype)
    assert (found.kind, found.base_model, found.notes) == (
        wanted.kind,
        wanted.base_model,
        wanted.notes,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_second_file_compiles_to_what_it_would_alone(
    lab, shape, tmp_path, layouts, monkeypatch, dtype
):
    first, second = (save(lab, tmp_path / str(seed), seed) for seed in (1, 2))
    for path in (first, second):
        save_file({k: v.to(dtype) for k, v in load_file(path / WEIGHTS).items()}, path / WEIGHTS)
    lab.compile_folder(first, shape)
    assert not layouts
    found = lab.compile_folder(second, shape)
    assert layouts == [found]
    monkeypatch.setattr(lora, "_layouts", Layouts())
    assert_same(found, lab.compile_folder(second, shape))


def test_other_settings_are_compiled_by_themselves(lab, shape, tmp_path, layouts):
    lab.compile_folder(save(lab, tmp_path / "a", 1), shape)
    other = lab.compile_folder(save(lab, tmp_path / "b", 1, lora_alpha=3), shape)
    assert not layouts
    assert {component.published_scale for component in other.components} == {0.75, 1.0}


def test_another_base_is_compiled_by_itself(lab, shape, tmp_path, layouts):
    folder = save(lab, tmp_path / "a", 1)
    lab.compile_folder(folder, shape)
    lab.compile_folder(folder, lab.make_shape(lab.make_base()))
    assert not layouts


def test_the_order_of_target_modules_does_not_matter(lab, shape, tmp_path, layouts):
    lab.compile_folder(save(lab, tmp_path / "a", 1), shape)
    second = save(lab, tmp_path / "b", 2)
    lab.edit_config(second, target_modules=["embed_tokens", *map(str, reversed(LINEARS))])
    lab.compile_folder(second, shape)
    assert len(layouts) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_values_are_checked_as_they_are_alone(lab, shape, tmp_path, layouts, value):
    lab.compile_folder(save(lab, tmp_path / "a", 1), shape)
    second = save(lab, tmp_path / "b", 2)
    tensors = load_file(second / WEIGHTS)
    (key,) = (k for k in tensors if "layers.1.self_attn.v_proj.lora_B" in k)
    tensors[key][0, 0] = value
    save_file(tensors, second / WEIGHTS)
    with pytest.raises(AdapterMalformed, match=r"v_proj\.lora_B.*(NaN or infinity|overflows)"):
        lab.compile_folder(second, shape)
    assert layouts == [None]


def test_what_holds_more_than_factors_is_never_read_by_a_layout(lab, shape, tmp_path, layouts):
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        lab.save_lora(
            folder, target_modules=["q_proj"], r=4, bias="all", base={"attention_bias": True}
        )
        lab.compile_folder(folder, lab.make_shape(lab.make_base(attention_bias=True)))
    assert not layouts


def test_the_least_recently_used_layout_is_forgotten(lab, shape, tmp_path, layouts):
    folders = [save(lab, tmp_path / str(i), 1, lora_alpha=i) for i in range(1, 35)]
    for folder in folders:
        lab.compile_folder(folder, shape)
    lab.compile_folder(folders[0], shape)
    assert not layouts
    lab.compile_folder(folders[-1], shape)
    assert len(layouts) == 1
