"""Adapters rewritten as plain LoRA, which PEFT then loads as such; what does not reduce."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from tests.kinds.case import Case, Reference, peft_case
from tests.kinds.folder import tensors_of
from tests.kinds.lab import CASES, PROMPTS, Lab, base_reference
from torch import Tensor

from turret_adapters.convert import convert
from turret_adapters.derivation import Source, derivation
from turret_adapters.errors import AdapterError, AdapterUnsupported
from turret_adapters.loading import read_adapter
from turret_server.models.shape import stored_shape

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BY_NAME = {case.name: case for case in CASES}
RSLORA = peft_case(
    "lora-rslora",
    "lora",
    lambda: LoraConfig(
        r=3, lora_alpha=5, use_rslora=True, target_modules=LINEARS, rank_pattern={"q_proj": 5}
    ),
)
CONVERTED = [
    (RSLORA, "llama"),
    *(
        (BY_NAME[name], BY_NAME[name].bases[0])
        for name in (
            *("adalora", "adalora-pruned", "compeft", "delora-patterns", "gralora-hybrid", "hra"),
            *("loha", "loha-square", "loha-patterns", "lokr", "lokr-patterns", "lora-qalora"),
            *("lora-bdlora", "lora-kasa", "lora-pissa", "lora-olora", "miss", "poly", "tinylora"),
            *("unilora", "vblora-topk", "vera", "vera-narrow"),
        )
    ),
    (BY_NAME["lora"], "gemma"),
    (BY_NAME["tinylora-tied-vectors-and-embedding"], "gemma"),
    (BY_NAME["lora-pissa"], "qwen"),
]
REFUSED = {
    "adalora-bias": "adds a vector at layers.0.q_proj",
    "beft": "adds a vector at layers.0.v_proj",
    "cats": "leaves out small values at layers.0.act_fn",
    "control_vector": "adds a vector at layers.2.down_proj",
    "ia3": "scales layers.0.k_proj",
    "iti": "adds a vector at layers.0.attention",
    "ln_tuning": "scales layers.0.attention_in",
    "lofit": "adds a vector at layers.0.attention",
    "lora-bias": "adds a vector at layers.0.q_proj",
    "lora-dora": "scales layers.0.q_proj",
    "lora-norms": "scales layers.0.attention_in",
    "loramoe": "every token chooses among experts at layers.0.gate_proj",
    "loreft": "acts on layers.0.block",
    "oft": "rotates the input of layers.0.q_proj",
    "prefix_tuning": "puts keys and values before the prompt in layers.0.k_proj",
    "prompt_tuning": "puts virtual tokens before the prompt at embed_tokens",
    "red": "scales layers.0.down_proj",
    "road-1-32": "scales layers.0.q_proj",
    "shira": "changes single weights of layers.0.q_proj",
    "sparse_ft": "changes single weights of lm_head",
    "supertuning": "changes single weights of layers.0.q_proj",
    "teal": "leaves out small values at layers.0.q_proj",
    "trainable_tokens": "changes single rows of embed_tokens",
}


def as_lora(folder: Path, lab: Lab) -> Reference:
    """What PEFT computes with a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(lab.model(), str(folder)).eval()
    return base_reference(model)  # type: ignore[arg-type]


def off_by(reference: Reference, other: Reference) -> float:
    """The largest difference of a log-probability."""
    tokens = torch.tensor(PROMPTS[0])
    difference = reference(tokens).log_softmax(-1) - other(tokens).log_softmax(-1)
    return float(difference.abs().max())


def changes(folder: Path, lab: Lab) -> dict[str, Tensor]:
    """What our own reader understands: the changes of the weights [out, in], by site."""
    _, program = read_adapter(folder, stored_shape(lab.folder, torch.float32), torch.float32)
    assert program is not None
    assert program.primitives == ["LowRank"]
    return {str(c.site): c.b.T @ c.a for c in program.components}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("case", "base"), CONVERTED, ids=[f"{case.name}-{base}" for case, base in CONVERTED]
)
def test_peft_loads_what_was_converted_as_lora(labs, tmp_path, case: Case, base: str):
    """Both sides sum in float32, in another order: logits of about 10 differ by 1e-5."""
    lab, source, target = labs(base), tmp_path / "adapter", tmp_path / "lora"
    reference = case.make(source, lab.model())
    result = convert(source, target, stored_shape(lab.folder, torch.float32))
    assert off_by(reference, as_lora(target, lab)) < 5e-5
    assert off_by(reference, base_reference(lab.model())) > 0.05, "the case shows nothing"
    assert (result.kind, result.deviation) == (case.kind, 0)
    mine, theirs = changes(target, lab), changes(source, lab)
    for site, change in theirs.items():
        torch.testing.assert_close(mine.pop(site), change, atol=1e-6, rtol=1e-6)
    assert not any(rest.any() for rest in mine.values())
    assert result.num_bytes == (target / "adapter_model.safetensors").stat().st_size


def test_every_module_has_one_rank_in_every_layer_and_scale_one(labs, tmp_path):
    """All that servers read which know `r` and `lora_alpha` alone."""
    lab = labs("llama")
    BY_NAME["loha-patterns"].make(tmp_path / "a", lab.model())  # q, gate, head; not all of layer 2
    result = convert(tmp_path / "a", tmp_path / "b", stored_shape(lab.folder, torch.float32))
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == result.rank == 25
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["target_modules"] == ["gate_proj", "lm_head", "q_proj"]
    tensors = tensors_of(tmp_path / "b")
    assert len(tensors) == 2 * (3 + 3 + 1)
    for name, tensor in tensors.items():
        assert tensor.shape[0 if "lora_A" in name else 1] == 25, name
        assert tensor.dtype == torch.float32
    assert result.ranks == {
        site: 25 if str(site) == "layers.1.q_proj" else 4 for site in result.ranks
    }
    assert len(result.ranks) == 6  # of layer 2, q alone


def test_modules_may_keep_their_own_ranks(labs, tmp_path):
    lab = labs("llama")
    reference = BY_NAME["loha-patterns"].make(tmp_path / "a", lab.model())
    shape = stored_shape(lab.folder, torch.float32)
    result = convert(tmp_path / "a", tmp_path / "b", shape, own_ranks=True)
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 25
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert sorted(config["rank_pattern"].values()) == [4] * 5
    assert "model.layers.2.mlp.gate_proj" not in config["target_modules"]
    assert len(config["target_modules"]) == len(result.ranks) == 6
    assert off_by(reference, as_lora(tmp_path / "b", lab)) < 5e-5


@pytest.mark.parametrize("name", ["hra", "lora-pissa", "vera"])
def test_bfloat16_rounds_the_change_and_no_more(labs, tmp_path, name):
    """HRA's factors cancel to a twentieth; rounded as they are, the change would be off by 4%."""
    lab = labs("llama")
    BY_NAME[name].make(tmp_path / "a", lab.model())
    shape = stored_shape(lab.folder, torch.float32)
    result = convert(tmp_path / "a", tmp_path / "b", shape, dtype=torch.bfloat16)
    tensors = load_file(tmp_path / "b" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    want, got = changes(tmp_path / "a", lab), changes(tmp_path / "b", lab)
    errors = [float((got[s] - change).norm() / change.norm()) for s, change in want.items()]
    assert result.deviation == pytest.approx(max(errors), rel=1e-2)
    assert 1e-4 < result.deviation < 2**-8


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_more_than_low_rank_is_refused_with_its_place(labs, tmp_path, name):
    case = BY_NAME[name]
    lab = labs(case.bases[0])
    case.make(tmp_path / "a", lab.model())
    with pytest.raises(AdapterUnsupported, match=REFUSED[name]) as caught:
        convert(tmp_path / "a", tmp_path / "b", stored_shape(lab.folder, torch.float32))
    assert "merge it" in caught.value.fix
    assert not (tmp_path / "b").exists()


def test_no_kind_is_forgotten():
    tried = {case.kind for case, _ in CONVERTED} | {BY_NAME[name].kind for name in REFUSED}
    assert tried == {case.kind for case in CASES}


def test_an_adapter_of_some_positions_is_refused(labs, tmp_path):
    lab = labs("llama")
    config = lambda: LoraConfig(  # noqa: E731
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], alora_invocation_tokens=[5, 6]
    )
    peft_case("alora", "lora", config).make(tmp_path / "a", lab.model())
    with pytest.raises(AdapterUnsupported, match="acts at some positions"):
        convert(tmp_path / "a", tmp_path / "b", stored_shape(lab.folder, torch.float32))


def test_a_derived_adapter_is_converted(labs, tmp_path):
    lab = labs("llama")
    for name in ("loha", "vera"):
        BY_NAME[name].make(tmp_path / name, lab.model())
    sources = [Source(str(tmp_path / "loha")), Source(str(tmp_path / "vera"), 0.5)]
    shape = stored_shape(lab.folder, torch.float32)
    convert(derivation("sum", sources, {}), tmp_path / "b", shape)
    parts = changes(tmp_path / "loha", lab), changes(tmp_path / "vera", lab)
    for site, change in changes(tmp_path / "b", lab).items():
        want = parts[0][site] + 0.5 * parts[1][site]
        torch.testing.assert_close(change, want, atol=1e-5, rtol=1e-5)


def test_names_of_a_base_that_sees(labs, tmp_path):
    """Its vision tower has modules of the same names, which the short ones would adapt."""
    lab = labs("gemma")
    BY_NAME["lora"].make(tmp_path / "a", lab.model())
    shape = stored_shape(lab.folder, torch.float32)
    convert(tmp_path / "a", tmp_path / "b", shape, prefix="model.language_model.")
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    first = "model.language_model.layers.0.self_attn.q_proj"
    assert config["target_modules"][0] == first
    assert f"base_model.model.{first}.lora_A.weight" in tensors_of(tmp_path / "b")
    assert changes(tmp_path / "b", lab).keys() == changes(tmp_path / "a", lab).keys()


def test_a_folder_with_an_adapter_is_not_written_into(labs, tmp_path):
    lab = labs("llama")
    BY_NAME["vera"].make(tmp_path / "a", lab.model())
    before = (tmp_path / "a" / "adapter_config.json").read_bytes()
    with pytest.raises(AdapterError, match="holds an adapter already"):
        convert(tmp_path / "a", tmp_path / "a", stored_shape(lab.folder, torch.float32))
    assert (tmp_path / "a" / "adapter_config.json").read_bytes() == before


def test_nothing_is_left_of_what_failed(labs, tmp_path, monkeypatch):
    lab = labs("llama")
    BY_NAME["vera"].make(tmp_path / "a", lab.model())

    def fail(*args: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr("turret_adapters.convert._config", fail)
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "a", tmp_path / "b", stored_shape(lab.folder, torch.float32))
    assert not list((tmp_path / "b").iterdir())
