"""`turret fit lofit`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from click.testing import Result
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from turret_server.cli.fit_lofit import fit_lofit
from turret_server.errors import StartupError

WORDS = ["[unk]", "<s>", "</s>", *(f"w{i}" for i in range(29))]
app = typer.Typer()
app.command()(fit_lofit)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers of two heads, and a tokenizer of 32 words."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[unk]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for m in messages %}<s> {{ m.content }} </s> {% endfor %}"
    template += "{% if add_generation_prompt %}<s> {% endif %}"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", chat_template=template
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": f"w{i} w{i % 7}", "completion": "w3"} for i in range(20)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def run(model: Path, data: Path, output: Path, *args: str) -> Result:
    given = [str(model), "--data", str(data), "--output", str(output), "--epochs", "2", *args]
    return CliRunner().invoke(app, given)


def test_it_writes_an_adapter(model: Path, data: Path, tmp_path: Path):
    result = run(model, data, tmp_path / "new", "--heads", "50%")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(tmp_path / "new")
    assert "with 2 heads in" in result.stderr
    config = json.loads((tmp_path / "new" / "turret_adapter.json").read_text())
    assert config == {"kind": "lofit", "version": 1, "base_model": str(model)}
    tensors = load_file(tmp_path / "new" / "adapter.safetensors")
    assert {key: tuple(t.shape) for key, t in tensors.items()} == {
        "layers": (2,),
        "heads": (2,),
        "v": (2, 8),
    }


def test_a_number_of_heads(model: Path, data: Path, tmp_path: Path):
    assert run(model, data, tmp_path / "new", "--heads", "3").exit_code == 0
    assert load_file(tmp_path / "new" / "adapter.safetensors")["v"].shape == (3, 8)


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("--heads", "lots"), "no share"),
        (("--heads", "0%"), "no share"),
        (("--heads", "5"), "the model has 4"),
        (("--held-out", "200%"), "no share"),
        (("--max-tokens", "3"), "more than 3"),
    ],
)
def test_what_makes_no_sense_is_refused(model, data, tmp_path, args, why):
    error = run(model, data, tmp_path / "new", *args).exception
    assert isinstance(error, StartupError)
    assert why in error.why
    assert error.fix
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(model: Path, data: Path, tmp_path: Path):
    error = run(model, data, tmp_path).exception
    assert isinstance(error, StartupError)
    assert "not an empty folder" in error.why


def test_a_bad_line_is_named_before_the_model_is_loaded(data: Path, tmp_path: Path):
    data.write_text("{}")
    error = run(tmp_path / "no-model", data, tmp_path / "new").exception
    assert isinstance(error, StartupError)
    assert "line 1" in error.why
