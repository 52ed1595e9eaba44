"""Tiny scorers for tests: random weights, and tokenizers of a few hundred tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, WordPieceTrainer
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

TEXTS = [
    "What is the capital of France?",
    "Turn the order into JSON: three green mugs to Lyon, express.",
    '{"item": "mug", "quantity": 3, "color": "green"}',
    "The quick brown fox jumps over the lazy dog; née 🦊.",
]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "num_labels": 1,
}


def _roberta() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=340, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def _bert() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TEXTS, WordPieceTrainer(vocab_size=200, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def save_scorer(folder: Path, kind: str, **options: Any) -> None:
    """Write a random scorer, "roberta" (as Cappy: one output) or "bert", to a folder."""
    tokenizer = _roberta() if kind == "roberta" else _bert()
    special = {"pad_token": "<pad>" if kind == "roberta" else "[PAD]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    config_class = RobertaConfig if kind == "roberta" else BertConfig
    pads = {"pad_token_id": 1, "type_vocab_size": 1} if kind == "roberta" else {}
    sizes = SIZES | {"vocab_size": tokenizer.get_vocab_size(), **pads}
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config_class(**(sizes | options)))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.3
    model.save_pretrained(folder)
