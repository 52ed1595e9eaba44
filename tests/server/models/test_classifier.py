"""Scores against transformers' own classifiers, in batches of uneven lengths and alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from turret_server.errors import StartupError
from turret_server.models.classifier import Classifier

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
DECODER = {"num_key_value_heads": 2}
CPU = torch.device("cpu")

Save = Callable[..., tuple[Path, PreTrainedModel]]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """A random classifier, written with save_pretrained; nothing of it is near 0."""

    def make(config_class: type[PretrainedConfig], **options: Any) -> tuple[Path, PreTrainedModel]:
        torch.manual_seed(0)
        config = config_class(**(SIZES | options))
        model = AutoModelForSequenceClassification.from_config(config).eval()
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape)
            if parameter.dim() == 2:
                values *= 0.5 if "embed" in name else 1.5 * parameter.shape[1] ** -0.5
            else:
                values = 0.3 * values + ("norm" in name.lower() and name.endswith("weight"))
            parameter.data.copy_(values)
        model.save_pretrained(tmp_path)
        return tmp_path, model

    return make


@pytest.fixture
def inputs() -> tuple[list[list[int]], list[list[int]]]:
    """Token ids without the padding token, and the types of pairs."""
    rng = random.Random(0)
    ids = [[rng.randrange(2, 128) for _ in range(n)] for n in (3, 40, 17, 1, 62, 33)]
    types = [[int(i > len(row) // 2) for i in range(len(row))] for row in ids]
    return ids, types


def load(folder: Path, label: str = "") -> Classifier:
    return Classifier.load(folder, torch.float32, CPU, 4096, label)


def expected(model: PreTrainedModel, ids: list[int], types: list[int]) -> list[float]:
    """The logits of transformers, of one input by itself."""
    types_of = (
        {"token_type_ids": torch.tensor([types])} if model.config.model_type == "bert" else {}
    )
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), **types_of).logits[0].tolist()


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (RobertaConfig, {"type_vocab_size": 1}),
        (XLMRobertaConfig, {"type_vocab_size": 1, "hidden_act": "relu"}),
        (BertConfig, {"pad_token_id": 0}),
        (LlamaConfig, DECODER),
        (LlamaConfig, {**DECODER, "tie_word_embeddings": True, "num_labels": 3}),
        (MistralConfig, {**DECODER, "sliding_window": 16}),
        (Qwen2Config, DECODER),
        (Qwen3Config, {**DECODER, "head_dim": 16}),
        (RobertaConfig, {"num_labels": 3}),
    ],
)
def test_scores_are_transformers_own(save, inputs, config, options):
    options = {"num_labels": 1, **options}
    folder, model = save(config, **options)
    count = options["num_labels"]
    classifier = load(folder, "LABEL_2" if count > 1 else "")
    logits = [expected(model, *one) for one in zip(*inputs, strict=True)]
    if count > 1:
        logits = torch.tensor(logits).log_softmax(-1).tolist()
    wanted = [row[-1] for row in logits]
    assert max(wanted) - min(wanted) > 0.1, "the case tells nothing apart"
    together = classifier.scores(*inputs)
    alone = [classifier.scores([i], [t])[0] for i, t in zip(*inputs, strict=True)]
    assert together == pytest.approx(wanted, abs=2e-5)
    assert alone == pytest.approx(wanted, abs=2e-5)


def test_lengths_and_sizes(save):
    folder, _ = save(RobertaConfig, num_labels=1)
    classifier = load(folder)
    assert classifier.is_encoder
    assert classifier.max_length == 62  # positions are counted on from the padding token
    assert classifier.vocab_size == 128
    assert Classifier.load(folder, torch.float32, CPU, 20, "").max_length == 20


def test_damaged_weights_give_an_order_all_the_same(save, inputs):
    folder, model = save(RobertaConfig, num_labels=1)
    model.classifier.out_proj.weight.data.fill_(torch.nan)
    model.save_pretrained(folder)
    assert load(folder).scores(*inputs) == [torch.finfo(torch.float32).min] * 6


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["RobertaForMaskedLM"]}, "architectures"),
        ({"architectures": ["DebertaV2ForSequenceClassification"]}, "architectures"),
        ({"architectures": None}, "architectures"),
        ({"model_type": "bert"}, "model_type"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"_attn_implementation_internal": "someone/kernel"}, "_attn_implementation_internal"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"hidden_act": "gelu_new"}, "hidden_act"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"is_decoder": True}, "is_decoder"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"max_position_embeddings": 6}, "max_position_embeddings"),
        ({"pad_token_id": "1"}, "pad_token_id"),
        ({"id2label": ["good"]}, "id2label"),
        ({"id2label": {"7": "good"}}, "id2label"),
        ({"hidden_size": 32}, "tensor"),
    ],
)
def test_configurations_are_allow_listed(save, changes, named):
    folder, _ = save(RobertaConfig, num_labels=1)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(StartupError, match=named):
        load(folder)


def test_a_model_of_several_labels_needs_one(save):
    folder, _ = save(RobertaConfig, id2label={0: "wrong", 1: "right"})
    with pytest.raises(StartupError, match="wrong, right"):
        load(folder)
    with pytest.raises(StartupError, match="'left'"):
        load(folder, "left")
    assert load(folder, "right").scores([[5]], [[0]]) == load(folder, "1").scores([[5]], [[0]])
    assert load(folder, "right").scores([[5]], [[0]]) != load(folder, "wrong").scores([[5]], [[0]])


def test_pickled_weights_are_not_read(save):
    folder, _ = save(RobertaConfig, num_labels=1)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(StartupError, match="neither"):
        load(folder)
