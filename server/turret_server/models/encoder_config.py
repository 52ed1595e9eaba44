"""What an encoder with a classifier computes, read from `config.json`: see `config.py`.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from turret_server.models.config_fields import Fields

# transformers' class -> its prefix of tensor names. XLM-RoBERTa is RoBERTa with other tokens.
ENCODERS: dict[str, Literal["bert", "roberta"]] = {
    "BertForSequenceClassification": "bert",
    "RobertaForSequenceClassification": "roberta",
    "XLMRobertaForSequenceClassification": "roberta",
}
_MODEL_TYPES = {
    "BertForSequenceClassification": "bert",
    "RobertaForSequenceClassification": "roberta",
    "XLMRobertaForSequenceClassification": "xlm-roberta",
}
_ACTIVATIONS = ("gelu", "relu")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """An encoder of the BERT family: post-norm, learned positions, attention in both directions.

    Attributes:
        architecture: transformers' class.
        kind: "bert" (pooler and one linear) or "roberta" (a classifier of two).
        vocab_size: rows of the embedding.
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP.
        num_layers: layers.
        num_heads: heads; they share `hidden_size`.
        norm_eps: added to the variance of every norm.
        activation: of the MLP; "gelu" is the exact one.
        num_positions: rows of the position embedding.
        first_position: position of the first token (RoBERTa counts on from its padding token).
        num_types: rows of the token type embedding.
        num_labels: outputs of the classifier.
    """

    architecture: str
    kind: Literal["bert", "roberta"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    norm_eps: float
    activation: str
    num_positions: int
    first_position: int
    num_types: int
    num_labels: int

    @property
    def max_length(self) -> int:
        """The longest input, in tokens."""
        return self.num_positions - self.first_position

    @classmethod
    def from_fields(cls, fields: Fields, architecture: str, num_labels: int) -> EncoderConfig:
        """Read the configuration of an encoder, all fields of it.

        Args:
            fields: of `config.json`.
            architecture: a key of `ENCODERS`.
            num_labels: outputs of the classifier.

        Raises:
            StartupError: a field is missing, malformed or not implemented.
        """
        kind = ENCODERS[architecture]
        fields.neutral("model_type", _MODEL_TYPES[architecture])
        fields.refuse_foreign_code_and_quantization()
        fields.neutral("position_embedding_type", "absolute")
        fields.neutral("is_decoder", False)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            fields.take(name)  # of training
        fields.take("tie_word_embeddings")  # of a head that a classifier has not
        hidden_size, num_heads = fields.count("hidden_size"), fields.count("num_attention_heads")
        if hidden_size % num_heads:
            fields.refuse("num_attention_heads", f"it must divide hidden_size, {hidden_size}")
        activation = fields.take("hidden_act", "gelu")
        if activation not in _ACTIVATIONS:
            fields.refuse("hidden_act", f"only {' and '.join(_ACTIVATIONS)} are implemented")
        padding = fields.take("pad_token_id", 1 if kind == "roberta" else 0)
        if type(padding) is not int or padding < 0:
            fields.refuse("pad_token_id", "positions are counted from it")
        config = cls(
            architecture=architecture,
            kind=kind,
            vocab_size=fields.count("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=fields.count("intermediate_size"),
            num_layers=fields.count("num_hidden_layers"),
            num_heads=num_heads,
            norm_eps=fields.number("layer_norm_eps", 1e-12),
            activation=activation,
            num_positions=fields.count("max_position_embeddings"),
            first_position=padding + 1 if kind == "roberta" else 0,
            num_types=fields.count("type_vocab_size", 2),
            num_labels=num_labels,
        )
        if config.max_length < 8:
            fields.refuse("max_position_embeddings", "no pair of texts fits")
        fields.refuse_unread()
        return config
