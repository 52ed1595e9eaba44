"""Adapters of several kinds on one request, with weights, while other requests use none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from tests.kinds.case import peft_case
from tests.kinds.cases.lofit import drawn, hooked, write_compact
from tests.kinds.lab import PROMPTS, assert_same, base_reference
from torch import Tensor
from torch.nn.functional import silu
from transformers import PreTrainedModel

from turret_adapters import registry
from turret_adapters.components import Threshold
from turret_adapters.spec import Kind, ModelShape, Module, Program, Site
from turret_adapters.weight_table import expand
from turret_server.engine.messages import AdapterUse

D = 16
LEVEL = 0.15  # about half of the activations lie below
LAYERS = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]


@pytest.fixture
def cut(tmp_path, monkeypatch):
    """A plug-in whose adapters threshold SiLU(gate) in every layer, and a folder of its kind."""

    class EntryPoint:
        def load(self) -> Kind:
            sites = [Site(layer, Module.ACT) for layer in range(3)]
            program = Program("cut", tuple(Threshold(site, LEVEL) for site in sites))
            return Kind(
                "cut",
                lambda files: files.has("cut.json"),
                lambda files, shape: program,
                lambda files: ModelShape(0, {}),
                ("cut.json",),
            )

    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint()])
    registry.discover.cache_clear()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "cut.json").write_text("{}")
    yield tmp_path / "cut"
    registry.discover.cache_clear()


@pytest.fixture
def lab(labs):
    return labs("llama")


@pytest.fixture
def lora(tmp_path, lab):
    case = peft_case("lora", "lora", lambda: LoraConfig(r=4, target_modules=LAYERS))
    case.make(tmp_path / "lora", lab.model())
    return tmp_path / "lora"


def merged(
    model: PreTrainedModel, folder, weight: float | Callable[[int, str], float]
) -> PreTrainedModel:
    """The model with `weight * B A` added (alpha 8 over rank 4); weight of (layer, module)."""
    tensors = load_file(folder / "adapter_model.safetensors")
    for key, a in tensors.items():
        if "lora_A" in key:
            name = key.split("base_model.model.")[1].split(".lora_A")[0]
            parts = name.split(".")
            w = weight(int(parts[2]), parts[-1]) if callable(weight) else weight
            delta = 2 * tensors[key.replace("lora_A", "lora_B")] @ a
            model.get_submodule(name).weight.data += w * delta
    return model


def thresholded(model: PreTrainedModel) -> PreTrainedModel:
    class Cut(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = silu(x)
            return y * (y.abs() > LEVEL)

    for layer in model.model.layers:
        layer.mlp.act_fn = Cut()
    return model


def times(weight: float, table: dict) -> dict:
    return {head: weight * vector for head, vector in table.items()}


def test_lora_lofit_and_a_threshold_in_one_request(lab, lora, cut, tmp_path):
    torch.manual_seed(5)
    heads = [(0, 1), (1, 3), (2, 0)]
    v, a = drawn(heads, D, 0.5), drawn(heads, D, 0.5)
    write_compact(tmp_path / "lofit", v, a)
    loaded = [lab.load(folder) for folder in (lora, tmp_path / "lofit", cut)]
    assert [x.kind for x in loaded] == ["lora", "lofit", "cut"]

    def uses(*weights: float) -> list[AdapterUse]:
        pairs = zip(loaded, weights, strict=True)
        return [AdapterUse(x.digest, weight) for x, weight in pairs if weight]

    def reference(lora_weight: float, lofit_weight: float, cut_weight: float) -> Callable:
        model = merged(lab.model(), lora, lora_weight)
        model = thresholded(model) if cut_weight else model
        return hooked(model, times(lofit_weight, v), times(lofit_weight, a))

    stacks = [(1.0, 1.0, 1.0), (0.7, -0.4, 1.0), (0.5, 1.5, 0.0), (0.0, 1.0, 1.0), (0.0, 0.0, 1.0)]
    asked = [lab.ask(p, *uses(*w)) for w in stacks for p in PROMPTS]
    # The order in which a client names them does not matter.
    asked += [lab.ask(PROMPTS[0], *reversed(uses(0.7, -0.4, 1.0))), lab.ask(PROMPTS[0])]
    *answers, turned, alone = lab.run(asked)
    for i, weights in enumerate(stacks):
        for answer in answers[i * len(PROMPTS) : (i + 1) * len(PROMPTS)]:
            assert_same(answer, reference(*weights))
    assert_same(turned, reference(0.7, -0.4, 1.0))
    assert_same(alone, base_reference(lab.model()))
    for adapter in loaded:
        lab.unload(adapter)


def test_offsets_of_two_adapters_add_up(lab, tmp_path):
    """Where one of them scales, too: it scales the heads, not the offset of the other."""
    torch.manual_seed(6)
    heads = [(1, 0), (1, 2)]
    v, a, other = drawn(heads, D, 0.5), drawn(heads, D, 0.5), drawn(heads, D, 0.5)
    write_compact(tmp_path / "one", v, a)
    write_compact(tmp_path / "two", other)
    loaded = [lab.load(tmp_path / name) for name in ("one", "two")]
    uses = [AdapterUse(loaded[0].digest, 0.5), AdapterUse(loaded[1].digest, 2.0)]
    (answer,) = lab.run([lab.ask(PROMPTS[0], *uses)])
    both = {head: 0.5 * v[head] + 2 * other[head] for head in heads}
    assert_same(answer, hooked(lab.model(), both, times(0.5, a)))
    for adapter in loaded:
        lab.unload(adapter)


def test_two_scales_of_one_site_are_refused(lab, tmp_path):
    torch.manual_seed(7)
    loaded = []
    for name, head in (("one", (1, 0)), ("two", (1, 3))):
        write_compact(tmp_path / name, drawn([head], D, 0.5), drawn([head], D, 0.5))
        loaded.append(lab.load(tmp_path / name))
    refused = lab.engine.submit(lab.ask(PROMPTS[0], *(AdapterUse(x.digest) for x in loaded)))
    assert refused.error.kind == "Unprocessable"  # 422
    assert refused.error.why.startswith("two of them scale layers.1.attention")
    assert refused.error.fix
    # Each of them alone still runs.
    lab.run([lab.ask(PROMPTS[1], AdapterUse(x.digest)) for x in loaded])
    for adapter in loaded:
        lab.unload(adapter)


def test_two_thresholds_of_one_site_are_refused(lab, cut):
    loaded = lab.load(cut)
    (cut / "cut.json").write_text('{"another": 1}')
    other = lab.load(cut)
    refused = lab.engine.submit(
        lab.ask(PROMPTS[0], AdapterUse(loaded.digest), AdapterUse(other.digest))
    )
    assert refused.error.kind == "Unprocessable"
    assert refused.error.why.startswith("two of them threshold layers.0.act_fn")
    lab.unload(loaded)
    lab.unload(other)


def test_weights_by_layer_and_module(lab, lora):
    """Beside the same adapter with one weight, and the base."""
    loaded = lab.load(lora)
    num_layers = lab.engine.decoder.shape.num_layers
    tables = [
        {"layers.1": 0.5, "q_proj": -1.0, "layers.0.q_proj": 2.0, "mlp": 0.25},
        {"*": 0, "layers.2-2.self_attn": 1.5},
    ]
    weights = [
        lambda layer, module: (
            (2.0 if layer == 0 else -1.0)
            if module == "q_proj"
            else 0.25
            if module in ("gate_proj", "down_proj")
            else 0.5
            if layer == 1
            else 1.0
        ),
        lambda layer, module: 1.5 if layer == 2 and module in LAYERS[:3] else 0.0,
    ]
    uses = [AdapterUse(loaded.digest, expand(t, loaded.targets, num_layers)) for t in tables]
    asked = [lab.ask(PROMPTS[0], use) for use in (*uses, AdapterUse(loaded.digest, 0.7))]
    *answers, plain, alone = lab.run([*asked, lab.ask(PROMPTS[0])])
    for answer, weight in zip(answers, weights, strict=True):
        assert_same(answer, base_reference(merged(lab.model(), lora, weight)))
    assert_same(plain, base_reference(merged(lab.model(), lora, 0.7)))
    assert_same(alone, base_reference(lab.model()))
    lab.unload(loaded)
