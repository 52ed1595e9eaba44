"""What the contract does not show: positions, rows of tokens, weights between 0 and 1, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import HRAConfig, KasaConfig, LoraConfig, PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from tests.kinds.case import peft_case
from tests.kinds.lab import PROMPTS, Lab, assert_same, base_reference
from torch import Tensor

from turret_adapters.components import LowRank, RowDelta
from turret_adapters.errors import AdapterError
from turret_adapters.files import AdapterFiles
from turret_adapters.registry import detect
from turret_adapters.spec import ModelShape, Module, Positions, Program, Site
from turret_server.engine.messages import AdapterUse


def compile_folder(folder: Path, shape: ModelShape) -> Program:
    with AdapterFiles.open(folder) as files:
        return detect(files).compile(files, shape)


def make(lab: Lab, folder: Path, config: PeftConfig, std: float = 0.1):
    """Let PEFT write an adapter; its reference."""
    return peft_case("lora-here", "lora", lambda: config, std=std).make(folder, lab.model())


def refuses(folder: Path, shape: ModelShape, text: str) -> None:
    with pytest.raises(AdapterError) as caught:
        compile_folder(folder, shape)
    assert text in str(caught.value)
    assert caught.value.fix


@torch.no_grad()
def logits_at_positions(lab: Lab, program: Program, tokens: Tensor) -> Tensor:
    """The base, and the low ranks in those rows that the program's positions name."""
    assert program.positions is not None
    rows = torch.zeros(len(tokens), 1)
    for start, stop in program.positions.spans(tokens.tolist()):
        rows[start:stop] = 1
    model = lab.model()
    for c in program.components:
        assert isinstance(c, LowRank)
        layer = model.model.layers[c.site.layer]
        block = layer.mlp if c.site.module in (Module.GATE, Module.UP, Module.DOWN) else None
        linear = getattr(block or layer.self_attn, c.site.module)
        linear.register_forward_hook(
            lambda module, inputs, output, c=c: output + rows * (inputs[0] @ c.a.T @ c.b)
        )
    return model(tokens[None]).logits[0]


@pytest.mark.parametrize("where", [(3,), (3, 20), ()], ids=["once", "twice", "never"])
def test_an_activated_lora_acts_from_its_last_invocation_on(labs, tmp_path, where):
    """At the level of the compiled program: what an engine that obeys positions computes."""
    lab, invocation = labs("llama"), (90, 91, 92)
    config = LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj", "down_proj"],
        alora_invocation_tokens=list(invocation),
        task_type="CAUSAL_LM",
    )
    reference = make(lab, tmp_path, config)
    program = compile_folder(tmp_path, lab.engine.decoder.shape)
    assert program.positions == Positions(invocation=invocation)
    tokens = torch.tensor(PROMPTS[2])
    for start in where:
        tokens[start : start + 3] = torch.tensor(invocation)
    ours, theirs = logits_at_positions(lab, program, tokens), reference(tokens)
    assert (ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max() < 5e-5
    moved = (theirs - base_reference(lab.model())(tokens)).abs().amax(-1) > 1e-2
    assert moved.tolist() == [bool(where) and row >= max(where) for row in range(len(tokens))]


@pytest.mark.parametrize(
    ("base", "indices"),
    [("llama", [9, 3, 77]), ("tied", [9, 3, 77]), ("llama", {"embed_tokens": [9], "lm_head": [4]})],
    ids=["embedding", "tied", "embedding-and-head"],
)
def test_trained_tokens_are_rows(labs, tmp_path, base, indices):
    """At the level of the compiled program: the rows, written into the base."""
    lab = labs(base)
    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=indices)
    reference = make(lab, tmp_path, config)
    shape = lab.engine.decoder.shape
    program = compile_folder(tmp_path, shape)
    model = lab.model()
    tables = {Module.EMBED: model.get_input_embeddings(), Module.HEAD: model.lm_head}
    rows = [c for c in program.components if isinstance(c, RowDelta)]
    assert {c.site.module for c in rows} == (
        {Module.EMBED} if base == "llama" and isinstance(indices, list) else set(tables)
    )
    for c in rows:
        assert c.ids.tolist() == sorted(c.ids.tolist())
        if not (shape.tied_head and c.site.module is Module.HEAD):  # one table, written once
            tables[c.site.module].weight.data[c.ids] += c.delta
    for c in program.components:
        if isinstance(c, LowRank):
            linear = model.model.layers[c.site.layer].self_attn.q_proj
            linear.weight.data += c.b.T @ c.a
    tokens = torch.tensor([3, 9, 77, 5, 4, 9])
    ours, theirs = base_reference(model)(tokens), reference(tokens)
    assert (ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max() < 5e-5
    assert (theirs - base_reference(lab.model())(tokens)).abs().max() > 1e-2


CONFIGS = {
    "dora": ("qwen", lambda: LoraConfig(r=3, use_dora=True, target_modules=["q_proj", "up_proj"])),
    "kasa": ("llama", lambda: LoraConfig(r=3, kasa_config=KasaConfig(), target_modules=["o_proj"])),
    "olora": (
        "llama",
        lambda: LoraConfig(r=3, init_lora_weights="olora", target_modules=["o_proj"]),
    ),
    "hra": ("llama", lambda: HRAConfig(r=4, target_modules=["q_proj", "up_proj"])),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("weight", [0.5, -1.0])
def test_the_weight_moves_along_the_line_through_base_and_adapter(labs, tmp_path, name, weight):
    base, config = CONFIGS[name]
    lab = labs(base)
    make(lab, tmp_path, config())
    merged = PeftModel.from_pretrained(lab.model(), str(tmp_path)).merge_and_unload().state_dict()
    between = lab.model()
    between.load_state_dict(
        {k: w + weight * (merged[k] - w) for k, w in between.state_dict().items()}
    )
    loaded = lab.load(tmp_path)
    (answer,) = lab.run([lab.ask(PROMPTS[0], AdapterUse(loaded.digest, weight))])
    assert_same(answer, base_reference(between))
    lab.unload(loaded)


def test_a_part_of_a_shared_head_is_refused(labs, tmp_path):
    lab = labs("llama")
    make(lab, tmp_path, LoraConfig(r=2, init_lora_weights="olora", target_modules=["lm_head"]))
    path = tmp_path / "adapter_model.safetensors"
    save_file({k: t for k, t in load_file(path).items() if "lora" in k}, path)
    shape = lab.engine.decoder.shape
    assert compile_folder(tmp_path, shape).rank == 4
    refuses(tmp_path, replace(shape, tied_head=True), "the embedding shares that weight")


@pytest.mark.parametrize("init", ["pissa", "olora", "kasa"])
def test_a_part_that_the_base_does_not_determine_is_refused(labs, tmp_path, init):
    lab = labs("llama")
    fields = {"kasa_config": KasaConfig()} if init == "kasa" else {"init_lora_weights": init}
    make(lab, tmp_path, LoraConfig(r=2, target_modules=["q_proj"], **fields))
    shape = lab.engine.decoder.shape
    equal = torch.eye(64)  # every singular value is 1
    if init == "olora":
        equal[:, 1] = equal[:, 0]
    refuses(tmp_path, replace(shape, weight=lambda site: equal), "does not determine")


def test_a_gain_where_the_base_has_none_is_refused(labs, tmp_path):
    lab = labs("llama")
    make(lab, tmp_path, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"]))
    shape = lab.engine.decoder.shape
    gain = torch.ones(64)
    gain[5] = 0
    refuses(tmp_path, replace(shape, gain=lambda site: gain), "set to zero")


@pytest.mark.parametrize("module", ["k_proj", "lm_head"])
def test_full_weights_are_refused(labs, tmp_path, module):
    lab = labs("llama")
    make(lab, tmp_path, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[module]))
    refuses(tmp_path, lab.engine.decoder.shape, "full weights of modules")


def test_tokens_outside_the_vocabulary_are_refused(labs, tmp_path):
    lab = labs("llama")
    make(lab, tmp_path, LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[1]))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trainable_token_indices": [128]}))
    refuses(tmp_path, lab.engine.decoder.shape, "this base has 128")


def test_magnitudes_of_a_weight_without_a_row_are_refused(labs, tmp_path):
    lab = labs("llama")
    make(lab, tmp_path, LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]))
    path = tmp_path / "adapter_model.safetensors"
    save_file({k: t * (0 if "lora_B" in k else 1) for k, t in load_file(path).items()}, path)

    def weight(site: Site) -> Tensor:
        return torch.zeros(64, 64)

    refuses(tmp_path, replace(lab.engine.decoder.shape, weight=weight), "is zero")
