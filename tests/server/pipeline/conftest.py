"""Small tokenizers of the three sorts that models have, and the demo model's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as HFTokenizer

from turret_server.demo import demo_model
from turret_server.pipeline.tokenizer import Tokenizer

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[TOOL_CALLS]", "<|python_tag|>"]


def byte_level() -> HFTokenizer:
    """GPT-2's sort: every byte, some merges inside and across characters, added tokens."""
    chars = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("l", "l"), ("ð", "Ł"), ("Ã", "©"), ("!", "!")]
    tokens = [*chars, *("".join(pair) for pair in merges)]
    tokenizer = HFTokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Spelled in the byte alphabet or not, special or not.
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("<tool_call>", "ça va", "é")])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def sentencepiece() -> HFTokenizer:
    """Llama 2's and Mistral's sort: a leading `▁`, single bytes for what the vocabulary lacks."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("l", "l"), ("▁", "▁")]
    pieces = [*"▁abcdefghijklmnopqrstuvwxyz.,!?{}[]\"':_é日", *("".join(pair) for pair in merges)]
    tokens = ["<unk>", *fallback, *pieces]
    model = models.BPE(
        vocab={t: i for i, t in enumerate(tokens)},
        merges=merges,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = HFTokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def metaspace() -> HFTokenizer:
    """Older conversions of SentencePiece: `▁` by pre-tokenizer and decoder."""
    tokenizer = sentencepiece()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


MAKERS: dict[str, Callable[[], HFTokenizer]] = {
    "byte_level": byte_level,
    "sentencepiece": sentencepiece,
    "metaspace": metaspace,
}


def write_folder(
    folder: Path, tokenizer: HFTokenizer, template: str | None = None, **config: Any
) -> Path:
    """Write a model folder's tokenizer files."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "clean_up_tokenization_spaces": False,
        **({"chat_template": template} if template is not None else {}),
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """A tokenizer of each sort, by name."""
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        name: Tokenizer.load(write_folder(root / name, make())) for name, make in MAKERS.items()
    }


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a folder with a byte-level tokenizer and the given config."""

    def make(template: str | None = None, sort: str = "byte_level", **config: Any) -> Path:
        return write_folder(tmp_path_factory.mktemp("model"), MAKERS[sort](), template, **config)

    return make


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    return demo_model(progress=False)


@pytest.fixture(scope="session")
def demo_tokenizer(demo_folder: Path) -> Tokenizer:
    return Tokenizer.load(demo_folder)
