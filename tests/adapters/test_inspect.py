import json

import pytest

from turret_adapters.inspect import describe


def test_a_plain_adapter(saved):
    report = describe(saved)
    assert report["refusal"] is None
    assert report["kind"] == "lora"
    assert report["modules"] == {
        "q_proj": {"ranks": [4], "layers": [0, 1, 2]},
        "v_proj": {"ranks": [4], "layers": [0, 1, 2]},
    }
    assert report["num_parameters"] == 3 * (4 * 64 + 4 * 48)
    assert report["num_bytes"] == 4 * report["num_parameters"]
    assert report["num_tensors"] == 12
    assert report["dtypes"] == ["float32"]
    assert len(report["digest"]) == 64
    json.dumps(report)


def test_everything_lora_can_have(lab, tmp_path):
    lab.save_lora(
        tmp_path,
        {"attention_bias": True},
        r=2,
        target_modules=["embed_tokens", "q_proj", "lm_head"],
        rank_pattern={"layers.1.self_attn.q_proj": 6},
        bias="all",
        init_lora_weights="gaussian",
    )
    report = describe(tmp_path)
    assert report["refusal"] is None
    assert list(report["modules"]) == [
        "q_proj", "k_proj", "v_proj", "o_proj", "embed_tokens", "lm_head",
    ]  # fmt: skip
    assert report["modules"]["q_proj"] == {"ranks": [2, 6], "layers": [0, 1, 2]}
    assert report["modules"]["k_proj"] == {"ranks": [], "layers": [0, 1, 2]}
    assert report["modules"]["embed_tokens"] == {"ranks": [2], "layers": []}
    assert any("not compared" in note for note in report["notes"])


def test_a_stored_head_is_not_said_to_have_the_wrong_size(lab, tmp_path):
    lab.save_lora(tmp_path, r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    report = describe(tmp_path)
    assert report["refusal"] is None
    assert any("not compared" in note for note in report["notes"])


@pytest.mark.parametrize(
    "fields", [{"modules_to_save": ["norm"]}, {"trainable_token_indices": [3, 5]}]
)
def test_what_needs_a_base_says_so_and_does_not_guess_one(lab, tmp_path, fields):
    lab.save_lora(tmp_path, r=2, target_modules=["q_proj"], **fields)
    assert "no base is at hand" in describe(tmp_path)["refusal"]["why"]


def test_what_is_refused_is_still_described(lab, folder):
    lab.edit_config(folder, arrow_config={"top_k": 2})
    report = describe(folder)
    assert report["kind"] == "lora"
    assert report["num_tensors"] == 12
    assert "arrow_config" in report["refusal"]["why"]
    assert report["refusal"]["fix"]


@pytest.mark.parametrize("damage", ["adapter_config.json", "adapter_model.safetensors"])
def test_damage_is_a_report(folder, damage):
    (folder / damage).write_bytes(b"{")
    report = describe(folder)
    assert damage in report["refusal"]["what"]
    assert "modules" not in report


def test_no_such_folder(tmp_path):
    assert describe(tmp_path / "none")["refusal"]["why"] == "there is no such folder"
