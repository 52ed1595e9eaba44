"""The base of all request bodies: strict types, and a rule for fields nobody declared.

An undeclared field is judged by one rule, so that no request is served other than asked:

- `null` asks for nothing: accepted.
- Harmless noise that clients are known to send (`user`, `metadata`, ...), and names that begin
  with a vendor prefix: accepted and ignored.
- A known feature that is not served: refused by name unless its value is the neutral one.
- Anything else may be a misspelt field: refused, naming the closest field.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from turret_server.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Unserved:
    """A known field that is not served; `neutral` values ask for nothing and pass."""

    why: str
    fix: str = "Leave it out."
    neutral: tuple[Any, ...] = ()


T = TypeVar("T")

# A list whose first bad item is the only one that is told of: a body has room for a million, and
# pydantic would describe each of them before the first could be shown.
FastList = Annotated[list[T], Field(fail_fast=True)]

HARMLESS = frozenset(
    {
        # OpenAI: bookkeeping of their platform.
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
        "prompt_cache_retention", "prompt_cache_options",
        # vLLM and SGLang: names and hints without influence on the answer.
        "request_id", "rid", "include_reasoning", "guided_decoding_backend",
        # LiteLLM, gateways.
        "api_key", "api_base", "custom_llm_provider", "session_id", "chat_id",
    }
)  # fmt: skip

VENDOR_PREFIXES = ("x_", "x-", "litellm_", "langfuse_", "helicone_")

_BEAMS = "beam search is not served"
_MODALITY = "this server reads and writes text only"

UNSERVED: dict[str, Unserved] = {
    "audio": Unserved(_MODALITY),
    "modalities": Unserved(_MODALITY, 'Send ["text"] or leave it out.', (["text"], [])),
    "prediction": Unserved("predicted outputs are not served"),
    "suffix": Unserved("insertion before a suffix is not served", neutral=("",)),
    "use_beam_search": Unserved(_BEAMS, "Use n or best_of.", (False,)),
    "length_penalty": Unserved(_BEAMS, neutral=(1, 0)),
    "early_stopping": Unserved(_BEAMS, neutral=(False,)),
    "functions": Unserved("it was replaced by tools", "Use tools.", ([],)),
    "function_call": Unserved("it was replaced by tool_choice", "Use tool_choice.", ("none",)),
    "web_search_options": Unserved("this server does not search the web"),
    "reasoning_effort": Unserved(
        "the model has no such setting of its own",
        "If its chat template knows one, use chat_template_kwargs.",
    ),
    "verbosity": Unserved("the model has no such setting", neutral=("medium",)),
    "moderation": Unserved("this server does not moderate"),
    "chat_template": Unserved(
        "templates come from the model or the operator only", "Render it and use /v1/completions."
    ),
    "documents": Unserved(
        "documents are parts of messages", 'Send {"type": "document", ...}.', ([],)
    ),
    "lora": Unserved("adapters are named", 'Use "adapters": [{"name": ..., "weight": 1.0}].'),
    "lora_path": Unserved("adapters are named", "Use the adapter's name as model."),
    "lora_request": Unserved("adapters are named", "Use the adapter's name as model."),
    "priority": Unserved("requests take turns fairly", neutral=(0,)),
    "bad_words": Unserved("words cannot be banned", "Use logit_bias.", ([],)),
    "allowed_token_ids": Unserved("it is not served", "Use logit_bias or guided_regex."),
    "logits_processors": Unserved("requests may not bring code", neutral=([],)),
    "truncate_prompt_tokens": Unserved("prompts are never cut", "Shorten the prompt."),
    "truncation": Unserved("prompts are never cut", neutral=("disabled", False)),
    "guided_whitespace_pattern": Unserved("white space follows JSON", "Use guided_grammar."),
    "structural_tag": Unserved("it is not served", "Use tools or guided_grammar."),
    "spaces_between_special_tokens": Unserved("it is not served", neutral=(True,)),
    "return_tokens_as_token_ids": Unserved("it is not served", "Use /tokenize.", (False,)),
    "return_token_ids": Unserved("it is not served", "Use /tokenize.", (False,)),
    "logprob_token_ids": Unserved("it is not served", neutral=([],)),
    "kv_transfer_params": Unserved("it is not served"),
    "vllm_xargs": Unserved("it is not served", neutral=({},)),
    "mm_processor_kwargs": Unserved(_MODALITY, neutral=({},)),
    "conversation": Unserved("conversations are not stored", "Send all messages."),
    "previous_response_id": Unserved("responses are not stored", "Send all messages."),
    "n_probs": Unserved("it is not served", "Use logprobs.", (0,)),
    "grammar": Unserved("it is not served", "Use guided_grammar.", ("",)),
    "regex": Unserved("it is not served", "Use guided_regex."),
    "json_schema": Unserved("it is not served", "Use response_format."),
    "typical_p": Unserved("it is not served", neutral=(1,)),
    "mirostat": Unserved("it is not served", neutral=(0,)),
    "thinking": Unserved("it is not served", "Use chat_template_kwargs."),
}  # fmt: skip


class RequestBody(BaseModel):
    """A JSON body: types are not converted, undeclared fields are judged (see the module)."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, protected_namespaces=())

    @model_validator(mode="after")
    def _judge_undeclared(self) -> RequestBody:
        for name, value in (self.model_extra or {}).items():
            judge(name, value, known=type(self).model_fields)
        return self


class Part(BaseModel):
    """An object inside a body; fields that it does not know are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, protected_namespaces=())


class ClosedPart(BaseModel):
    """An object inside a body of which every field matters; unknown ones are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _first_unknown(cls, value: Any) -> Any:
        """Leave one unknown field to be refused: see `FastList`."""
        if not isinstance(value, dict) or len(value) <= len(cls.model_fields):
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        first = next((name for name in value if name not in known), None)
        return {name: one for name, one in value.items() if name in known or name is first}


def judge(name: str, value: Any, *, known: Any) -> None:
    """Accept or refuse an undeclared field.

    Raises:
        BadRequest: the field would change the answer, or may be a misspelt one.
    """
    if value is None or name in HARMLESS or name.startswith(VENDOR_PREFIXES):
        return
    if unserved := UNSERVED.get(name):
        if any(_same(value, one) for one in unserved.neutral):
            return
        raise BadRequest(f"{name!r} is not supported", unserved.why, unserved.fix, param=name)
    shown = name[:64]
    close = get_close_matches(shown, known, n=1, cutoff=0.6)
    raise BadRequest(
        f"{shown!r} is not a field of this request",
        "an unknown field may change what is asked for, so it is not ignored",
        f"Did you mean {close[0]!r}?" if close else "Remove it, or prefix it with 'x_'.",
        param=shown,
    )


def _same(a: Any, b: Any) -> bool:
    """Equality as in JSON: 1 is 1.0, but not true."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)
