"""PEFT itself is the anchor: its logits and those of our components agree for every setting."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, MontecloraConfig, VeloraConfig, get_peft_model

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BIASED = {"attention_bias": True, "mlp_bias": True}
TIED = {"tie_word_embeddings": True}

# name -> (LoraConfig, LlamaConfig)
VARIANTS = {
    "q and v": ({"target_modules": ["q_proj", "v_proj"]}, {}),
    "all-linear": ({"target_modules": "all-linear"}, {}),
    "one module": ({"target_modules": ["model.layers.1.mlp.down_proj"]}, {}),
    "odd rank, fractional alpha": ({"target_modules": ALL, "r": 3, "lora_alpha": 5.5}, {}),
    "negative alpha": ({"target_modules": ALL, "lora_alpha": -4}, {}),
    "rslora": ({"target_modules": ALL, "use_rslora": True}, {}),
    "rank_pattern": (
        {"target_modules": ALL, "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 6}},
        {},
    ),
    "alpha_pattern": (
        {
            "target_modules": ALL,
            "rank_pattern": {"^model.layers.0.self_attn.q_proj": 2},
            "alpha_pattern": {"self_attn.q_proj": 3, "(gate|up)_proj": 40.5, "q_proj": 1000},
        },
        {},
    ),
    "rslora with patterns": (
        {"target_modules": ALL, "use_rslora": True, "rank_pattern": {"v_proj": 1}},
        {},
    ),
    "layers_to_transform": ({"target_modules": ALL, "layers_to_transform": [0, 2]}, {}),
    "one layer": (
        {"target_modules": ALL, "layers_to_transform": 1, "layers_pattern": "layers"},
        {},
    ),
    "regular expression": (
        {"target_modules": r"(?!.*layers\.0).*\.(self_attn|mlp)\.(q|up|down)_proj"},
        {},
    ),
    "exclude_modules": (
        {"target_modules": ALL, "exclude_modules": ["k_proj", "layers.0.mlp.up_proj"]},
        {},
    ),
    "exclude by expression": (
        {"target_modules": "all-linear", "exclude_modules": r".*\.[12]\..*"},
        {},
    ),
    "embedding": ({"target_modules": ["embed_tokens", "q_proj"]}, {}),
    "head": ({"target_modules": ["lm_head", "o_proj"]}, {}),
    "embedding and head": ({"target_modules": ["embed_tokens", "lm_head", *ALL]}, {}),
    "embedding, tied base": ({"target_modules": ["embed_tokens", "q_proj"]}, TIED),
    "tied adapters": (
        {"target_modules": ["embed_tokens", "lm_head", "v_proj"], "ensure_weight_tying": True},
        TIED,
    ),
    "bias all": ({"target_modules": ["q_proj", "down_proj"], "bias": "all"}, BIASED),
    "bias lora_only": ({"target_modules": ["q_proj", "up_proj"], "bias": "lora_only"}, BIASED),
    "lora_bias": ({"target_modules": ALL, "lora_bias": True}, {}),
    "lora_bias and bias all": ({"target_modules": ALL, "lora_bias": True, "bias": "all"}, BIASED),
    "fan_in_fan_out": ({"target_modules": ["q_proj", "up_proj"], "fan_in_fan_out": True}, {}),
    "gaussian": ({"target_modules": ALL, "init_lora_weights": "gaussian"}, {}),
    "orthogonal": ({"target_modules": ALL, "init_lora_weights": "orthogonal"}, {}),
    "mica": ({"target_modules": ALL, "init_lora_weights": "mica"}, {}),
    "velora": ({"target_modules": ["q_proj"], "velora_config": VeloraConfig(num_groups=4)}, {}),
    "monteclora": ({"target_modules": ["q_proj"], "monteclora_config": MontecloraConfig()}, {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_pefts(lab, tmp_path, variant):
    config, base_config = VARIANTS[variant]
    base, expected = lab.save_lora(tmp_path, base_config, **({"r": 4, "lora_alpha": 8} | config))
    program = lab.compile_folder(tmp_path, lab.make_shape(base))
    logits = lab.adapted_logits(base, program)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(logits, base(lab.tokens).logits, atol=1e-2)


def test_every_rank_of_a_pattern_is_kept(lab, tmp_path):
    base, _ = lab.save_lora(tmp_path, target_modules=ALL, r=4, rank_pattern={"q_proj": 2})
    program = lab.compile_folder(tmp_path, lab.make_shape(base))
    ranks = {(str(c.site.module), c.rank) for c in program.components}
    assert ranks == {("q_proj", 2), *((name, 4) for name in ALL if name != "q_proj")}


def _renamed(replace):
    return lambda tensors: {replace(key): value for key, value in tensors.items()}


NAMES = {
    "no prefix": lambda key: key.removeprefix("base_model.model."),
    "trained without the head": lambda key: key.replace("model.model.layers", "model.layers"),
    "adapter name kept": lambda key: key.replace(".weight", ".default.weight"),
    "other adapter name": lambda key: key.replace(".weight", ".my-run.weight"),
    "vision-language": lambda key: key.replace("model.layers", "model.language_model.layers"),
    "older vision-language": lambda key: key.replace("model.layers", "language_model.model.layers"),
    "compiled": lambda key: key.replace("base_model.model", "base_model.model._orig_mod"),
    "distributed": lambda key: "module." + key,
}


@pytest.mark.parametrize("variant", NAMES)
def test_names_of_tensors_vary(lab, folder, shape, variant):
    expected = lab.compile_folder(folder, shape)
    lab.edit_tensors(folder, _renamed(NAMES[variant]))
    program = lab.compile_folder(folder, shape)
    assert [c.site for c in program.components] == [c.site for c in expected.components]
    for ours, theirs in zip(program.components, expected.components, strict=True):
        assert torch.equal(ours.a, theirs.a)
        assert torch.equal(ours.b, theirs.b)


def test_target_modules_is_matched_against_the_paths_of_training(lab, folder, shape):
    """A pattern that was written for a vision-language model names paths with language_model."""
    lab.edit_tensors(folder, _renamed(NAMES["vision-language"]))
    lab.edit_config(folder, target_modules=r"model\.language_model\.layers\.\d+\..*\.[qv]_proj")
    assert len(lab.compile_folder(folder, shape).components) == 2 * lab.layers


def test_stored_dtype_does_not_matter(lab, folder, shape):
    expected = lab.compile_folder(folder, shape)
    lab.edit_tensors(folder, lambda t: {k: v.double() for k, v in t.items()})
    program = lab.compile_folder(folder, shape)
    for ours, theirs in zip(program.components, expected.components, strict=True):
        torch.testing.assert_close(ours.b, theirs.b)
        torch.testing.assert_close(ours.a.float(), theirs.a)


def test_the_scale_is_multiplied_in_float32_and_rounded_once(lab, folder, shape):
    lab.edit_config(folder, lora_alpha=4 / 3)
    lab.edit_tensors(folder, lambda t: {k: v.bfloat16() for k, v in t.items()})
    component = lab.compile_folder(folder, shape).components[0]
    assert component.b.dtype == torch.float32
    assert component.a.dtype == torch.bfloat16


@pytest.mark.parametrize("has_reader", [False, True])
def test_the_copy_of_the_embedding_is_compared_where_the_base_is_at_hand(lab, tmp_path, has_reader):
    base, expected = lab.save_lora(tmp_path, target_modules=["embed_tokens"], r=2)
    shape = lab.make_shape(base)
    if has_reader:
        shape = replace(shape, weight=lambda site: lab.module_of(base, site).weight)
    program = lab.compile_folder(tmp_path, shape)
    assert any("not compared" in note for note in program.notes) != has_reader
    torch.testing.assert_close(lab.adapted_logits(base, program), expected)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@torch.no_grad()
def test_a_converted_adapter_of_a_mutating_initialisation_is_plain(lab, tmp_path, init):
    """PEFT turns it into LoRA of twice the rank, on the base as it was before."""
    model = get_peft_model(
        lab.make_base(), LoraConfig(r=4, target_modules=ALL, init_lora_weights=init)
    ).eval()
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = init
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter += torch.randn_like(parameter) / 10
    trained = model(lab.tokens).logits
    model.save_pretrained(
        tmp_path / "final", path_initial_model_for_weight_conversion=str(tmp_path / "initial")
    )
    base = lab.make_base()
    program = lab.compile_folder(tmp_path / "final", lab.make_shape(base))
    assert program.rank == 8
    # PEFT subtracts and adds the initial factors in float32.
    torch.testing.assert_close(lab.adapted_logits(base, program), trained, rtol=1e-4, atol=1e-4)
