"""Reading `config.json` so that no field goes unread: typed access, and the harmless rest."""

from __future__ import annotations

import math
from typing import Any, NoReturn

from turret_server.errors import StartupError

# Fields that never change a logit at inference: who made the model, how it was trained, which
# tokens are special, how text is generated from it, what transformers returns beside the logits.
HARMLESS = frozenset(
    {
        # identity and tools
        "_name_or_path",
        "name_or_path",
        "_commit_hash",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "tokenizer_class",
        "is_llama_config",
        "max_sequence_length",
        "transformers.js_config",
        "unsloth_fixed",
        "unsloth_version",
        # training
        "attention_dropout",
        "initializer_range",
        "pretraining_tp",
        "gradient_checkpointing",
        # special tokens
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "unk_token_id",
        "sep_token_id",
        "decoder_start_token_id",
        # what transformers returns, and for which task
        "use_cache",
        "cache_implementation",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "return_dict_in_generate",
        "tie_last_hidden_states",
        "torchscript",
        "use_bfloat16",
        "chunk_size_feed_forward",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "task_specific_params",
        "finetuning_task",
        "is_decoder",
        "prefix",
        # generation defaults (old files keep them here): generation_config.json is what counts
        "bad_words_ids",
        "begin_suppress_tokens",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "length_penalty",
        "max_length",
        "max_new_tokens",
        "min_length",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "remove_invalid_values",
        "repetition_penalty",
        "suppress_tokens",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
    }
)

# Fields that do change the function, but not at these values.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False,),
    "per_layer_config": (None,),
    "pruned_heads": ({},),
    "rope_interleaved": (False,),
    "tie_encoder_decoder": (False,),
    "use_mrope": (False,),
}

_REQUIRED = object()


class Fields:
    """The fields of one `config.json`, or of an object in it; knows which ones were read."""

    def __init__(self, model: str, raw: dict[str, Any], path: str = "") -> None:
        """Read `raw`, an object of the configuration of `model`, found under `path`."""
        self._model, self._raw, self._path = model, raw, path
        self._read: set[str] = set()

    def take(self, name: str, default: Any = None) -> Any:
        """The raw value, or `default` where the field is absent."""
        self._read.add(name)
        return self._raw.get(name, default)

    def count(self, name: str, default: Any = _REQUIRED) -> int:
        """A positive integer; a null counts as absent. Without a default it is required."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.refuse(name, "it must be a positive integer")
        return value

    def optional_count(self, name: str, default: int) -> int:
        """A positive integer, `default` where absent, 0 where null."""
        return 0 if self.take(name, default) is None else self.count(name, default)

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        """A positive finite number; a null counts as absent."""
        value = self._value(name, default)
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or value <= 0:
            self.refuse(name, "it must be a positive number")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """A positive finite number, or None where absent or null."""
        return None if self.take(name) is None else self.number(name)

    def flag(self, name: str, default: bool) -> bool:
        """A boolean; a null counts as absent."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            self.refuse(name, "it must be true or false")
        return value

    def neutral(self, name: str, *values: Any) -> None:
        """Accept the field only where it is absent, null or one of `values`."""
        if self.take(name) not in (None, *values):
            allowed = " or ".join(repr(value) for value in (values or ("null",)))
            self.refuse(name, f"this architecture implements only {allowed}")

    def nested(self, name: str) -> Fields | None:
        """The object in a field, or None where it is absent, null or empty."""
        value = self.take(name)
        if not value:
            return None
        if not isinstance(value, dict):
            self.refuse(name, "it must be an object")
        return Fields(self._model, value, f"{self._path}{name}.")

    def refuse_foreign_code_and_quantization(self) -> None:
        """Refuse checkpoints whose function is defined elsewhere, before anything else."""
        if self.take("quantization_config") is not None:
            self.refuse(
                "quantization_config",
                "quantized checkpoints are not served",
                "Serve the model's float16 or bfloat16 checkpoint.",
            )
        if self.take("auto_map"):
            self.refuse(
                "auto_map",
                "code that ships with a model is never run",
                "Serve a checkpoint in transformers' own format, without auto_map.",
            )

    def refuse_unread(self) -> None:
        """Refuse every field that nobody read and that is not known to be harmless."""
        for name in sorted(self._raw.keys() - self._read - HARMLESS):
            if name not in NEUTRAL or self._raw[name] not in (None, *NEUTRAL[name]):
                self.refuse(name, "this field may change the model and is not implemented")

    def refuse(self, name: str, why: str, fix: str = "") -> NoReturn:
        """Refuse the model because of this field.

        Raises:
            StartupError: always; names the field, its value, and what to do.
        """
        value = f" = {self._raw[name]!r}" if name in self._raw else " is missing"
        raise StartupError(
            f"model {self._model!r} cannot be served",
            f"config.json: {self._path}{name}{value:.200}: {why}",
            fix or "Correct the field if it is wrong, or serve another model.",
        )

    def _value(self, name: str, default: Any) -> Any:
        value = self.take(name)
        if value is None:
            value = default
        if value is _REQUIRED:
            self.refuse(name, "the model's function depends on it")
        return value
