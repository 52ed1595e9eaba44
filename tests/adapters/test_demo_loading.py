"""The adapters that ship with Turret, through the whole package: files, kind, store, banks."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import turret_adapters
from turret_adapters.components import LowRank, Offset, Threshold
from turret_adapters.groups import first_column
from turret_adapters.inspect import describe
from turret_adapters.loading import read_adapter
from turret_adapters.peft.names import module_path
from turret_adapters.plan import Group, RowUse, StepPlan
from turret_adapters.spec import ModelShape, Module, Site
from turret_adapters.store import AdapterStore, StoreLimits

DEMO = Path(turret_adapters.__file__).parent / "demo"
FOLDERS = sorted(p.parent for p in DEMO.glob("*/*.json"))
LORA_FOLDERS = sorted(p.parent for p in DEMO.glob("*/adapter_config.json"))
# SmolLM2-135M
HIDDEN, KV, INNER, VOCAB = 576, 192, 1536, 49152
SHAPE = ModelShape(
    30,
    {
        Module.Q: (HIDDEN, HIDDEN),
        Module.K: (HIDDEN, KV),
        Module.V: (HIDDEN, KV),
        Module.O: (HIDDEN, HIDDEN),
        Module.GATE: (HIDDEN, INNER),
        Module.UP: (HIDDEN, INNER),
        Module.DOWN: (INNER, HIDDEN),
        Module.EMBED: (VOCAB, HIDDEN),
        Module.HEAD: (HIDDEN, VOCAB),
    },
    name="HuggingFaceTB/SmolLM2-135M-Instruct",
    head_dim=64,
)


def test_there_are_five():
    assert len(FOLDERS) >= 5
    assert len(LORA_FOLDERS) >= 3


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_nothing_in_it_is_refused(folder):
    report = describe(folder)
    assert report["refusal"] is None
    assert report["base_model"] == SHAPE.name
    _, program = read_adapter(folder, SHAPE, torch.bfloat16)
    assert program.notes == ()


@pytest.mark.parametrize("folder", LORA_FOLDERS, ids=lambda folder: folder.name)
def test_the_factors_are_those_in_the_file(folder):
    _, program = read_adapter(folder, SHAPE, torch.float32)
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    for component in program.components:
        assert isinstance(component, LowRank)
        rank, path = component.rank, module_path(component.site)
        a, b = (tensors.pop(f"base_model.model.{path}.lora_{x}.weight").float() for x in "AB")
        scale = config["lora_alpha"] / (math.sqrt(rank) if config["use_rslora"] else rank)
        assert torch.equal(component.a, a)
        torch.testing.assert_close(component.b, scale * b.T)
    assert tensors == {}


def test_triage_shifts_the_heads_in_its_file():
    _, program = read_adapter(DEMO / "triage", SHAPE, torch.bfloat16)
    tensors = load_file(DEMO / "triage/adapter.safetensors")
    vectors = {c.site.layer: c.vector for c in program.components if isinstance(c, Offset)}
    assert len(vectors) == len(program.components)
    for layer, head, v in zip(*(tensors[key] for key in ("layers", "heads", "v")), strict=True):
        part = vectors[int(layer)][64 * int(head) :][:64]
        assert torch.equal(part, v)
        part.zero_()
    assert not any(vector.any() for vector in vectors.values())


def test_cats_thresholds_every_layer():
    _, program = read_adapter(DEMO / "cats-50", SHAPE, torch.bfloat16)
    thresholds = json.loads((DEMO / "cats-50/turret_adapter.json").read_text())["thresholds"]
    assert program.components == tuple(
        Threshold(Site(layer, Module.ACT), value) for layer, value in enumerate(thresholds)
    )


@pytest.mark.parametrize("group", [Group.QKV, Group.O, Group.GATE_UP, Group.DOWN])
def test_all_of_them_in_one_batch(group):
    limits = StoreLimits(max_resident=len(FOLDERS), max_rank_rows=64)
    store = AdapterStore(SHAPE, limits, torch.device("cpu"), torch.float32)
    loads = [store.load(folder) for folder in FOLDERS]
    digests = [load.result(60).digest for load in loads]
    store.close()  # after the last was warmed
    assert len(set(digests)) == len(FOLDERS)
    slots = [store.try_pin([digest]) for digest in digests]
    assert None not in slots
    layer, rows = 21, len(FOLDERS) + 1
    x = torch.randn(1, SHAPE.dims[group.modules[0]][0]).expand(rows, -1).contiguous()
    y = torch.zeros(rows, sum(SHAPE.dims[module][1] for module in group.modules))
    uses = [RowUse(i, 1, slot, (1.0,)) for i, slot in enumerate(slots)]
    StepPlan(store.banks, uses).apply(layer, group, y, x)
    want = torch.zeros_like(y)  # the last row is the base's
    for i, folder in enumerate(FOLDERS):
        for component in read_adapter(folder, SHAPE, torch.float32)[1].components:
            if component.site.layer == layer and component.site.module in group.modules:
                assert isinstance(component, LowRank)
                column = first_column(SHAPE, component.site.module)
                columns = slice(column, column + component.b.shape[1])
                want[i, columns] = x[i] @ component.a.T @ component.b
    assert want.any()
    torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5)


def test_for_a_gpu_every_tensor_is_pinned(monkeypatch):
    """This build of torch may know no GPU, so pinned copies are only marked."""
    pinned = set()

    def pin_memory(tensor):
        copy = tensor.clone()
        pinned.add(copy.data_ptr())
        return copy

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    for folder in FOLDERS:
        _, wanted = read_adapter(folder, SHAPE, torch.bfloat16)
        _, program = read_adapter(folder, SHAPE, torch.bfloat16, pin=True)
        for found, component in zip(program.components, wanted.components, strict=True):
            assert found.site == component.site
            for one, other in zip(found.tensors, component.tensors, strict=True):
                assert one.data_ptr() in pinned
                assert torch.equal(one, other)
