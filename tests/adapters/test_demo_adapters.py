"""The shipped demo adapters are small, ordinary folders, and their scores belong to them."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import turret_adapters

ROOT = Path(__file__).resolve().parents[2]
DEMO = Path(turret_adapters.__file__).parent / "demo"
LORA_NAMES = ["order-json", "sql", "dates"]
NAMES = [*LORA_NAMES, "triage"]  # those with a task; cats-50 has none
MAX_BYTES = 2_000_000
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
SCORES = json.loads((ROOT / "examples/demo_scores.json").read_text())
EXAMPLES = json.loads((DEMO / "examples.json").read_text())


@pytest.fixture(scope="module")
def tasks() -> Iterator[dict[str, Any]]:
    """The tasks as `examples/` defines them; scripts there import each other by bare names."""
    sys.path.insert(0, str(ROOT / "examples"))
    from demo_tasks import all_tasks

    yield all_tasks()
    sys.path.remove(str(ROOT / "examples"))


def test_every_folder_is_listed():
    folders = sorted(path.name for path in DEMO.iterdir() if path.is_dir())
    assert folders == sorted([*NAMES, "cats-50"]) == sorted(SCORES["adapters"])
    assert sorted(NAMES) == sorted(EXAMPLES)


@pytest.mark.parametrize("name", LORA_NAMES)
def test_a_folder_holds_config_and_weights_in_two_megabytes(name: str):
    files = {path.name: path.stat().st_size for path in (DEMO / name).iterdir()}
    assert sorted(files) == ["adapter_config.json", "adapter_model.safetensors"]
    assert sum(files.values()) <= MAX_BYTES


@pytest.mark.parametrize("name", LORA_NAMES)
def test_a_config_names_the_base_and_no_path(name: str):
    config = json.loads((DEMO / name / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == BASE
    assert config["peft_type"] == "LORA"
    assert [v for v in config.values() if isinstance(v, str) and v.startswith(("/", "~"))] == []


@pytest.mark.parametrize("name", LORA_NAMES)
def test_weights_are_those_that_peft_expects(name: str):
    config = PeftConfig.from_pretrained(str(DEMO / name))
    assert isinstance(config, LoraConfig)
    with torch.device("meta"):
        base = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=49152,
                hidden_size=576,
                intermediate_size=1536,
                num_hidden_layers=30,
                num_attention_heads=9,
                num_key_value_heads=3,
                tie_word_embeddings=True,
            )
        )
        base.name_or_path = BASE
        expected = get_peft_model_state_dict(
            get_peft_model(base, config), save_embedding_layers=False
        )
    weights = load_file(DEMO / name / "adapter_model.safetensors")
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    assert shapes == {key: tuple(tensor.shape) for key, tensor in expected.items()}
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


@pytest.mark.parametrize("name", LORA_NAMES)
def test_weights_are_finite_and_trained(name: str):
    for key, tensor in load_file(DEMO / name / "adapter_model.safetensors").items():
        assert torch.isfinite(tensor).all(), key
        assert tensor.abs().max() > 0, key  # PEFT starts B at zero


def test_triage_is_a_lofit_folder_of_a_few_kilobytes():
    files = {path.name: path.stat().st_size for path in (DEMO / "triage").iterdir()}
    assert sorted(files) == ["adapter.safetensors", "turret_adapter.json"]
    assert sum(files.values()) <= 50_000
    config = json.loads((DEMO / "triage/turret_adapter.json").read_text())
    assert config == {"kind": "lofit", "version": 1, "base_model": BASE}


def test_triage_shifts_a_tenth_of_the_heads():
    tensors = load_file(DEMO / "triage/adapter.safetensors")
    layers, heads, v = tensors["layers"], tensors["heads"], tensors["v"]
    assert v.shape == (27, 64)
    assert len(set(zip(layers.tolist(), heads.tolist(), strict=True))) == 27
    assert int(layers.max()) < 30
    assert int(heads.max()) < 9
    assert torch.isfinite(v).all()
    assert (v.norm(dim=-1) > 0.1).all()  # it starts at 1e-3 per element


def test_cats_is_thirty_numbers():
    (file,) = (DEMO / "cats-50").iterdir()
    assert file.stat().st_size < 1500
    config = json.loads(file.read_text())
    thresholds = config.pop("thresholds")
    assert config == {"kind": "cats", "version": 1, "base_model": BASE}
    assert len(thresholds) == 30
    assert all(0 < threshold < 1 for threshold in thresholds)


def test_cats_leaves_half_of_the_neurons_out_and_the_text_readable():
    result = SCORES["adapters"]["cats-50"]
    assert 0.45 < result["dead"]["least"] < result["dead"]["most"] < 0.55
    assert result["scores"]["adapter"] < 1.3 * result["scores"]["base"]


def test_shapes_differ_among_the_adapters():
    configs = [json.loads((DEMO / name / "adapter_config.json").read_text()) for name in LORA_NAMES]
    assert len({c["r"] for c in configs}) == len(LORA_NAMES)
    assert len({tuple(sorted(c["target_modules"])) for c in configs}) == len(LORA_NAMES)
    assert any(c["use_rslora"] for c in configs)
    assert any(c["rank_pattern"] for c in configs)


@pytest.mark.parametrize("name", NAMES)
def test_generators_repeat_themselves(tasks: dict[str, Any], name: str):
    first = tasks[name].examples("train", 300, seed=7)
    assert tasks[name].examples("train", 300, seed=7) == first
    assert tasks[name].examples("train", 300, seed=8) != first


@pytest.mark.parametrize("name", NAMES)
def test_the_published_score_is_of_these_test_examples(tasks: dict[str, Any], name: str):
    result = SCORES["adapters"][name]
    held_out = tasks[name].examples("test", result["test_examples"], result["test_seed"])
    assert tasks[name].digest(held_out) == result["test_sha256"]


def test_the_splits_share_no_item_color_town_table_value_or_year(tasks: dict[str, Any]):
    from demo_tasks import dates, order_json, sql_tables

    for lists in (order_json.ITEMS, order_json.COLORS, order_json.CITIES, order_json.NAMES):
        assert not set(lists["train"]) & set(lists["test"])
    train, test = sql_tables.TABLES["train"], sql_tables.TABLES["test"]
    assert not {t.name for t in train} & {t.name for t in test}
    assert not {v for t in train for vs in t.words.values() for v in vs} & {
        v for t in test for vs in t.words.values() for v in vs
    }
    years = {e.answer[:4] for e in tasks["dates"].examples("train", 2000, seed=1)}
    assert not years & {str(year) for year in dates.TEST_YEARS}


@pytest.mark.usefixtures("tasks")
def test_triage_is_tested_with_reasons_products_and_manners_of_its_own():
    from demo_tasks import triage

    for by_team in (*triage.REASONS.values(), triage.PRODUCTS):
        assert not set(by_team["train"]) & set(by_team["test"])
    for manners in (triage.OPENERS, triage.CLOSERS):
        assert set(manners["train"]) & set(manners["test"]) == {""}
    reasons = [r for teams in triage.REASONS.values() for split in teams.values() for r in split]
    assert len(set(reasons)) == len(reasons)


@pytest.mark.parametrize("name", NAMES)
def test_training_never_sees_a_test_prompt(tasks: dict[str, Any], name: str):
    result = SCORES["adapters"][name]
    task = tasks[name]
    seen = {
        e.prompt for e in task.examples("train", result["train_examples"], result["train_seed"])
    }
    held_out = task.examples("test", result["test_examples"], result["test_seed"])
    assert not seen & {e.prompt for e in held_out}


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_score_and_wrong_ones_do_not(tasks: dict[str, Any], name: str):
    task = tasks[name]
    one, *others = task.examples("test", 40, seed=3)
    assert all(task.score(e.answer, e) for e in [one, *others])
    assert not any(task.score(e.answer, one) for e in others if e.answer != one.answer)
    assert not task.score("", one)
    assert not task.score("I am sorry, I cannot help with that.", one)


def test_json_types_matter(tasks: dict[str, Any]):
    task = tasks["order-json"]
    example = next(e for e in task.examples("test", 50, seed=3) if '"express": true' in e.answer)
    assert not task.score(example.answer.replace("true", "1"), example)
    assert not task.score(example.answer.replace("true", '"true"'), example)


def test_triage_wants_the_word_and_nothing_else(tasks: dict[str, Any]):
    task = tasks["triage"]
    (example,) = task.examples("test", 1, seed=3)
    assert task.score(f" {example.answer}\n", example)
    assert not task.score(f"{example.answer}.", example)
    assert not task.score(f"The team is {example.answer}", example)


def test_sql_is_judged_by_what_it_returns(tasks: dict[str, Any]):
    task = tasks["sql"]
    example = next(
        e
        for e in task.examples("test", 50, seed=3)
        if e.answer.startswith("SELECT COUNT(*)") and "WHERE" in e.answer
    )
    rewritten = example.answer.replace("COUNT(*)", "count(1)").replace("SELECT", "select")
    assert task.score(f"Sure:\n```sql\n{rewritten};\n```", example)
    assert not task.score(example.answer.split(" WHERE")[0], example)
    assert not task.score(example.answer.replace("COUNT", "NOSUCH"), example)


@pytest.mark.parametrize("name", NAMES)
def test_the_adapter_is_clearly_better_than_the_base(name: str):
    scores = SCORES["adapters"][name]["scores"]
    # An offset of a few heads can do less than LoRA, and triage's test has no sentence in common.
    assert scores["adapter"] >= (0.7 if name == "triage" else 0.8)
    assert scores["adapter"] >= max(scores["base_bare"], scores["base_instructed"]) + 0.25


@pytest.mark.parametrize("name", NAMES)
def test_the_shown_example_is_right(tasks: dict[str, Any], name: str):
    from demo_tasks import Example

    shown = Example(EXAMPLES[name]["prompt"], EXAMPLES[name]["answer"])
    assert tasks[name].score(shown.answer, shown)
