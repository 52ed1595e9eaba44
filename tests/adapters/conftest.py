"""A tiny Llama, LoRA folders that PEFT itself wrote for it, and the reference formula."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tests.adapters.store_lab import Stores
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from turret_adapters.components import Component, LowRank
from turret_adapters.files import AdapterFiles
from turret_adapters.kinds.lora import KIND
from turret_adapters.spec import LINEARS, ModelShape, Module, Program, Site

HIDDEN, INNER, VOCAB, LAYERS = 32, 48, 96, 3
TOKENS = torch.arange(1, 13).reshape(2, 6) * 7 % VOCAB


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_base(**overrides: Any) -> LlamaForCausalLM:
    """A random model whose weights are large enough for every error to show in the logits."""
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    }
    config = LlamaConfig(**(sizes | overrides))
    torch.manual_seed(1)
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data.normal_(0, 0.2)
    return model


def make_shape(model: LlamaForCausalLM) -> ModelShape:
    """The sizes of a transformers model."""
    modules = {name.rsplit(".", 1)[-1]: module for name, module in model.named_modules()}
    linears = {m: modules[m] for m in LINEARS}
    embedding = model.get_input_embeddings()
    return ModelShape(
        num_layers=model.config.num_hidden_layers,
        dims={m: (x.in_features, x.out_features) for m, x in linears.items()}
        | {Module.EMBED: tuple(embedding.weight.shape)}
        | {Module.HEAD: tuple(reversed(embedding.weight.shape))},
        has_bias=frozenset(m for m, x in linears.items() if x.bias is not None),
        name="tiny/llama",
        tied_head=model.config.tie_word_embeddings,
    )


def module_of(model: LlamaForCausalLM, site: Site) -> torch.nn.Module:
    """The transformers module of a site."""
    if site.module is Module.EMBED:
        return model.get_input_embeddings()
    if site.module is Module.HEAD:
        return model.lm_head
    layer = model.model.layers[site.layer]
    block = layer.self_attn if site.module in LINEARS[:4] else layer.mlp
    return getattr(block, site.module)


def reference_delta(
    component: Component, x: Tensor, bias: Tensor | None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """What a component adds to the output of its module, as the documentation of it says."""
    if isinstance(component, LowRank):
        a, b = component.a.to(dtype), component.b.to(dtype)
        hidden = a.T[x] if component.site.module is Module.EMBED else x @ a.T
        return hidden @ b
    base = 0 if bias is None or not component.absolute else bias
    return component.vector - base


@torch.no_grad()
def adapted_logits(model: LlamaForCausalLM, program: Program) -> Tensor:
    """Logits of the base with the components added by hooks."""
    handles = []
    for component in program.components:
        module = module_of(model, component.site)

        def hook(module, inputs, output, component=component):
            bias = getattr(module, "bias", None)
            return output + reference_delta(component, inputs[0], bias, output.dtype)

        handles.append(module.register_forward_hook(hook))
    logits = model(TOKENS).logits
    for handle in handles:
        handle.remove()
    return logits


@torch.no_grad()
def save_lora(
    path: Path, base: dict[str, Any] | None = None, **config: Any
) -> tuple[LlamaForCausalLM, Tensor]:
    """Let PEFT adapt a fresh base, save the adapter and load it; the base, and PEFT's logits.

    Both in float64, in which no processor's order of summation shows.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(make_base(**(base or {})), LoraConfig(**config))
        torch.manual_seed(2)
        for name, parameter in model.named_parameters():
            if "lora_" in name or ("bias" in name and config.get("bias", "none") != "none"):
                parameter.normal_(0, 0.2)
        model.save_pretrained(path)
        # Loaded anew: what is in the folder counts, and saving sorts the keys of patterns.
        model = PeftModel.from_pretrained(make_base(**(base or {})), str(path)).eval().double()
        logits = model(TOKENS).logits
    return make_base(**(base or {})).double(), logits


def compile_folder(path: Path, shape: ModelShape) -> Program:
    """The program of a LoRA folder."""
    with AdapterFiles.open(path) as files:
        return KIND.compile(files, shape)


def edit_config(path: Path, **fields: Any) -> None:
    """Overwrite fields of adapter_config.json."""
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def edit_tensors(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Rewrite adapter_model.safetensors."""
    file = path / "adapter_model.safetensors"
    save_file({k: v.contiguous().clone() for k, v in change(load_file(file)).items()}, file)


class Lab:
    """The helpers above, for tests."""

    make_base = staticmethod(make_base)
    make_shape = staticmethod(make_shape)
    module_of = staticmethod(module_of)
    adapted_logits = staticmethod(adapted_logits)
    reference_delta = staticmethod(reference_delta)
    save_lora = staticmethod(save_lora)
    compile_folder = staticmethod(compile_folder)
    edit_config = staticmethod(edit_config)
    edit_tensors = staticmethod(edit_tensors)
    hidden, inner, vocab, layers = HIDDEN, INNER, VOCAB, LAYERS
    tokens = TOKENS


@pytest.fixture(scope="session")
def lab() -> type[Lab]:
    return Lab


@pytest.fixture(scope="session")
def shape() -> ModelShape:
    """The sizes of the untied tiny base without biases."""
    return make_shape(make_base())


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of rank 4 on q and v; read only."""
    path = tmp_path_factory.mktemp("adapters") / "plain"
    save_lora(path, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    return path


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of `saved` to damage."""
    path = tmp_path / "plain"
    path.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (path / file).write_bytes((saved / file).read_bytes())
    return path


@pytest.fixture(scope="session")
def folders(lab, tmp_path_factory):
    """Six adapters on q and v of ranks 2, 4, ... 12."""
    root = tmp_path_factory.mktemp("store")
    for i in range(6):
        path = root / f"a{i}"
        torch.manual_seed(i)
        lab.save_lora(path, r=2 * i + 2, target_modules=["q_proj", "v_proj"])
        lab.edit_tensors(path, lambda t, i=i: {k: v + i for k, v in t.items()})
    return [root / f"a{i}" for i in range(6)]


@pytest.fixture
def make(shape):
    """Stores, closed at the end with nothing pinned."""
    stores = Stores(shape)
    yield stores
    stores.close()
