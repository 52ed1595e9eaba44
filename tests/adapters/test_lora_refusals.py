"""What is not plain LoRA on this base is refused by name: what, why, fix."""

import dataclasses

import pytest
import torch
from peft import LoraConfig

from turret_adapters.errors import AdapterError, AdapterMalformed, AdapterUnsupported
from turret_adapters.peft import lora_config
from turret_adapters.peft.config import PROVENANCE

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"

# field value -> (error class, what its text must contain)
CONFIGS = [
    ({"use_dora": True}, AdapterMalformed, "has no lora_magnitude_vector"),
    ({"use_dora": True, "use_bdlora": {"nblocks": 2}}, AdapterUnsupported, "together"),
    ({"modules_to_save": ["lm_head"]}, AdapterMalformed, "names lm_head"),
    ({"modules_to_save": "lm_head"}, AdapterMalformed, "no list"),
    ({"trainable_token_indices": [1]}, AdapterMalformed, "no row is stored"),
    ({"trainable_token_indices": [1, 1]}, AdapterMalformed, "repeats a token"),
    ({"trainable_token_indices": {"q_proj": [1]}}, AdapterUnsupported, "no embedding"),
    ({"alora_invocation_tokens": []}, AdapterMalformed, "never act"),
    ({"alora_invocation_tokens": ["hello"]}, AdapterMalformed, "alora_invocation_tokens"),
    ({"alora_invocation_tokens": [5], "bias": "all"}, AdapterUnsupported, "acts before"),
    ({"alora_invocation_tokens": [5], "modules_to_save": ["norm"]}, AdapterUnsupported, "before"),
    ({"target_parameters": ["experts.w"]}, AdapterUnsupported, "target_parameters"),
    ({"layer_replication": [[0, 2]]}, AdapterUnsupported, "layer_replication"),
    ({"use_qalora": True, "qalora_group_size": 1}, AdapterUnsupported, "look the same"),
    ({"use_bdlora": True}, AdapterMalformed, "use_bdlora"),
    ({"use_bdlora": {"future": 2}}, AdapterUnsupported, "future"),
    ({"use_bdlora": {"nblocks": 0}}, AdapterMalformed, "nblocks"),
    ({"use_bdlora": {"target_modules_bd_a": "q"}}, AdapterMalformed, "target_modules_bd_a"),
    (
        {"use_bdlora": {"nblocks": 2, "target_modules_bd_a": ["q_proj"]}},
        AdapterUnsupported,
        "expected [4, 16]",
    ),
    (
        {"use_bdlora": {"nblocks": 3, "target_modules_bd_b": ["q_proj"]}},
        AdapterUnsupported,
        "blocks",
    ),
    (
        {"use_bdlora": {"target_modules_bd_a": ["q_proj"], "target_modules_bd_b": ["layers"]}},
        AdapterMalformed,
        "both of its factors",
    ),
    ({"arrow_config": {"top_k": 2}}, AdapterUnsupported, "arrow_config"),
    ({"kasa_config": {"beta": 1.0}}, AdapterMalformed, "has no lora_diag"),
    ({"kasa_config": {"beta": 1.0}, "init_lora_weights": "olora"}, AdapterUnsupported, "beside"),
    ({"megatron_config": {"a": 1}}, AdapterUnsupported, "megatron_config"),
    ({"use_future_trick": True}, AdapterUnsupported, "use_future_trick"),
    ({"init_lora_weights": "pissa"}, AdapterUnsupported, "no base is at hand"),
    ({"init_lora_weights": "pissa_niter_4"}, AdapterUnsupported, "pissa_niter_4"),
    ({"init_lora_weights": "OLoRA"}, AdapterUnsupported, "no base is at hand"),
    ({"init_lora_weights": "PiSSA"}, AdapterUnsupported, "path_initial_model_for_weight"),
    ({"init_lora_weights": "corda"}, AdapterUnsupported, "corda"),
    ({"init_lora_weights": "lora_ga"}, AdapterUnsupported, "lora_ga"),
    ({"init_lora_weights": "loftq"}, AdapterUnsupported, "loftq"),
    ({"init_lora_weights": "magic"}, AdapterUnsupported, "magic"),
    ({"r": 0}, AdapterMalformed, "r is 0"),
    ({"r": True}, AdapterMalformed, "r is True"),
    ({"r": "8"}, AdapterMalformed, "r is '8'"),
    ({"r": 8}, AdapterMalformed, "expected [8, 32]"),
    ({"rank_pattern": {"q_proj": 0}}, AdapterMalformed, "the rank of"),
    ({"rank_pattern": {"q_proj": 2}}, AdapterMalformed, "contradicts the rank"),
    ({"rank_pattern": {"(q_proj": 2}}, AdapterMalformed, "no regular expression"),
    ({"rank_pattern": [1]}, AdapterMalformed, "not an object"),
    ({"rank_pattern": {f"x{i}": 1 for i in range(5000)}}, AdapterMalformed, "5000 entries"),
    ({"lora_alpha": 0}, AdapterMalformed, "is 0"),
    ({"lora_alpha": 10**400}, AdapterMalformed, "lora_alpha"),
    ({"lora_alpha": None}, AdapterMalformed, "lora_alpha"),
    ({"alpha_pattern": {"q_proj": "2"}}, AdapterMalformed, "lora_alpha of"),
    ({"lora_alpha": 1e300}, AdapterMalformed, "overflows"),
    ({"use_rslora": 1}, AdapterMalformed, "use_rslora"),
    ({"bias": "some"}, AdapterMalformed, "bias"),
    ({"lora_bias": True}, AdapterMalformed, "lora_bias"),
    ({"target_modules": {"q_proj": 1}}, AdapterMalformed, "target_modules"),
    ({"target_modules": "(q_proj"}, AdapterMalformed, "target_modules"),
    ({"target_modules": ".*", "layers_to_transform": [0]}, AdapterMalformed, "need target_modules"),
    ({"target_modules": ["q_proj"]}, AdapterMalformed, "v_proj"),
    ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, AdapterMalformed, "missing"),
    ({"exclude_modules": ["v_proj"]}, AdapterMalformed, "does not include"),
    ({"layers_to_transform": [0]}, AdapterMalformed, "does not include"),
    ({"layers_to_transform": ["0"]}, AdapterMalformed, "layers_to_transform"),
    ({"layers_to_transform": [0], "layers_pattern": "(a+)+"}, AdapterUnsupported, "layers_pattern"),
    (
        {"layers_to_transform": [0], "layers_pattern": ["x"] * 5000},
        AdapterMalformed,
        "5000 entries",
    ),
    ({"alora_invocation_tokens": [1] * 257}, AdapterUnsupported, "257 tokens"),
]


@pytest.mark.parametrize(
    ("fields", "error", "text"), CONFIGS, ids=[str(c[0])[:60] for c in CONFIGS]
)
def test_settings(lab, folder, shape, fields, error, text):
    lab.edit_config(folder, **fields)
    with pytest.raises(error) as caught:
        lab.compile_folder(folder, shape)
    assert text in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize(
    "fields",
    [
        {"use_future_trick": False, "another": None, "third": {}},
        {"lora_dropout": 0.3, "inference_mode": False, "task_type": "CAUSAL_LM"},
        {"eva_config": {"rho": 2.0}, "init_lora_weights": "eva"},
        {"loftq_config": {"loftq_bits": 4}, "corda_config": None},
        {"modules_to_save": [], "trainable_token_indices": None},
        {"target_modules": ["v_proj", "q_proj"]},
        {"init_lora_weights": False},
        {"base_model_name_or_path": 5},
    ],
    ids=str,
)
def test_settings_without_effect_are_accepted(lab, folder, shape, fields):
    lab.edit_config(folder, **fields)
    assert len(lab.compile_folder(folder, shape).components) == 2 * lab.layers


def test_every_field_of_peft_is_read_refused_or_known_to_be_harmless():
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert fields <= lora_config.KNOWN | set(lora_config.REFUSED) | PROVENANCE


def _without(key):
    return lambda tensors: {k: v for k, v in tensors.items() if k != key}


def _with(**changes):
    return lambda tensors: (
        tensors | {Q0 + "." + k.replace("__", "."): v for k, v in changes.items()}
    )


NAN = torch.full((4, 32), float("nan"))
TENSORS = {
    "A is missing": (_without(f"{Q0}.lora_A.weight"), AdapterMalformed, "has no lora_A"),
    "B is missing": (_without(f"{Q0}.lora_B.weight"), AdapterMalformed, "has no lora_B"),
    "NaN": (_with(lora_A__weight=NAN), AdapterMalformed, "NaN or infinity"),
    "infinity": (
        _with(lora_B__weight=torch.full((32, 4), float("inf"))),
        AdapterMalformed,
        "NaN or infinity",
    ),
    "integers": (
        _with(lora_A__weight=torch.zeros(4, 32, dtype=torch.int8)),
        AdapterMalformed,
        "not floating point",
    ),
    "wrong base": (
        _with(lora_A__weight=torch.zeros(4, 64)),
        AdapterUnsupported,
        "shape [4, 64], expected [4, 32]",
    ),
    "other base outside": (
        _with(lora_B__weight=torch.zeros(64, 4)),
        AdapterUnsupported,
        "'tiny/llama'",
    ),
    "transposed": (_with(lora_A__weight=torch.zeros(32, 4)), AdapterMalformed, "contradicts"),
    "a vector": (_with(lora_A__weight=torch.zeros(4)), AdapterMalformed, "shape [4]"),
    "DoRA": (
        _with(lora_magnitude_vector=torch.ones(32)),
        AdapterUnsupported,
        "lora_magnitude_vector",
    ),
    "a bias nobody announced": (
        _with(base_layer__bias=torch.ones(32)),
        AdapterUnsupported,
        "base_layer.bias",
    ),
    "a bias of lora_B nobody announced": (
        _with(lora_B__bias=torch.ones(32)),
        AdapterMalformed,
        "lora_bias is false",
    ),
    "full weights": (
        _with(base_layer__weight=torch.ones(32, 32)),
        AdapterUnsupported,
        "base_layer.weight",
    ),
    "two adapters": (
        lambda t: t | {f"{Q0}.lora_A.other.weight": torch.ones(4, 32)},
        AdapterMalformed,
        "same tensor",
    ),
    "a layer too many": (
        lambda t: t | {Q0.replace("0", "3") + ".lora_A.weight": torch.ones(4, 32)},
        AdapterUnsupported,
        "3 layers",
    ),
    "a vision tower": (
        lambda t: t | {"base_model.model.vision.layers.0.self_attn.q_proj.lora_A.weight": NAN},
        AdapterUnsupported,
        "vision",
    ),
    "fused projections": (
        lambda t: t | {Q0.replace("q_proj", "qkv_proj") + ".lora_A.weight": NAN},
        AdapterUnsupported,
        "qkv_proj",
    ),
    "a number written twice": (
        lambda t: t | {Q0.replace("0", "00") + ".lora_A.weight": NAN},
        AdapterUnsupported,
        "layers.00",
    ),
    "no tensor": (lambda t: {}, AdapterMalformed, "missing"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors(lab, folder, shape, case):
    change, error, text = TENSORS[case]
    lab.edit_tensors(folder, change)
    with pytest.raises(error) as caught:
        lab.compile_folder(folder, shape)
    assert text in str(caught.value)


def test_an_adapter_of_another_architecture_matches_no_module(lab, folder, shape):
    lab.edit_config(folder, target_modules=["c_attn"], base_model_name_or_path="gpt2")
    lab.edit_tensors(
        folder, lambda t: {"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": NAN}
    )
    with pytest.raises(AdapterUnsupported) as caught:
        lab.compile_folder(folder, shape)
    message = str(caught.value)
    assert "no module is matched" in message
    assert "c_attn" in message
    assert "q_proj" in message
    assert "gpt2" in message


def test_a_bias_that_the_base_does_not_have_means_another_base(lab, tmp_path, shape):
    lab.save_lora(tmp_path, {"attention_bias": True}, target_modules=["q_proj"], bias="all")
    with pytest.raises(AdapterUnsupported, match="a bias that this base does not have"):
        lab.compile_folder(tmp_path, shape)


def test_a_changed_embedding_is_refused(lab, tmp_path):
    base, _ = lab.save_lora(tmp_path, target_modules=["embed_tokens"], r=2)
    other = torch.zeros_like(base.get_input_embeddings().weight)
    shape = dataclasses.replace(lab.make_shape(base), weight=lambda site: other)
    with pytest.raises(AdapterUnsupported, match="differs from the base's embed_tokens"):
        lab.compile_folder(tmp_path, shape)


def test_a_resized_vocabulary_is_refused(lab, tmp_path, shape):
    lab.save_lora(tmp_path, {"vocab_size": lab.vocab + 8}, target_modules=["embed_tokens"])
    with pytest.raises(AdapterUnsupported, match=r"expected \[8, 96\]"):
        lab.compile_folder(tmp_path, shape)


def test_the_name_of_the_base_is_only_a_note(lab, folder, shape):
    lab.edit_config(folder, base_model_name_or_path="somebody/else")
    program = lab.compile_folder(folder, shape)
    assert program.base_model == "somebody/else"
    assert any("somebody/else" in note for note in program.notes)


def test_null_targets_are_what_is_stored(lab, folder, shape):
    lab.edit_config(folder, target_modules=None)
    program = lab.compile_folder(folder, shape)
    assert program.targets == ["q_proj", "v_proj"]
    assert any("null" in note for note in program.notes)


@pytest.mark.parametrize(
    "pattern", [r"(.*a)*(.*a)*(.*q_proj)*x", r"((a|.)+)+$\b!", "(" * 900 + ")" * 900]
)
def test_a_pattern_cannot_stop_the_server(lab, folder, shape, pattern):
    lab.edit_config(folder, target_modules=pattern)
    with pytest.raises(AdapterError):
        lab.compile_folder(folder, shape)
