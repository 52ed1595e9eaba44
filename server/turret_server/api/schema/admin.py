"""Bodies of the routes that manage adapters, and of the tokenizer's routes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from turret_server.api.schema.base import FastList, RequestBody
from turret_server.api.schema.chat import Message, Tool
from turret_server.api.schema.derive import DeriveBody
from turret_server.errors import BadRequest

Name = Annotated[str, Field(min_length=1, max_length=128)]
Path = Annotated[str, Field(min_length=1, max_length=4096)]
Digest = Annotated[str | None, Field(max_length=128)]

# A million: four characters for each of the tokens that a context of 262,144 holds.
MAX_TOKENIZE_CHARS = 2**20

_PATH = (
    "A folder or archive below an adapter root, or a Hugging Face id or URL that the server's "
    "--adapter-remote allows."
)
_DIGEST = "Refuse any other content: 64 hexadecimal digits, with or without `sha256:`."
_PIN = "Keep it on the device, whatever else is asked for. By default as it was under this name."


class LoadLoraBody(RequestBody):
    """vLLM's body; every kind of adapter is accepted."""

    lora_name: Name = Field(description="What clients will send as `model`.")
    lora_path: Path = Field(description=_PATH)
    load_inplace: bool = Field(False, description="Replace an adapter of this name.")
    digest: Digest = Field(None, description=_DIGEST)
    pin: bool | None = Field(None, description=_PIN)


class UnloadLoraBody(RequestBody):
    """vLLM's body."""

    lora_name: Name
    lora_int_id: int | None = Field(None, description="Ignored; adapters are known by name.")


class PutAdapterBody(RequestBody):
    """Where an adapter lies, or what to make it of, and whether it stays on the device."""

    path: Path | None = Field(None, description=f"{_PATH} Without it only `pin` changes.")
    derive: DeriveBody | None = Field(None, description="Make it of other adapters.")
    digest: Digest = Field(None, description=f"{_DIGEST} With `path`.")
    pin: bool | None = Field(None, description=_PIN)

    @model_validator(mode="after")
    def _one_of_both(self) -> PutAdapterBody:
        if self.path is not None and self.derive is not None:
            problem = "both are given"
        elif self.path is None and self.digest is not None:
            problem = "'digest' is that of a 'path'"
        elif self.path is None and self.derive is None and self.pin is None:
            problem = "neither is given, nor 'pin'"
        else:
            problem = None
        if problem is not None:
            raise BadRequest(
                "'path' and 'derive' are alternatives",
                problem,
                "Send one of them; 'pin' goes with either, or alone.",
                param="path",
            )
        return self


class TokenizeBody(RequestBody):
    """Either `prompt` or `messages`."""

    model: str | None = Field(None, max_length=2048, description="Any served name.")
    prompt: str | None = Field(None, max_length=MAX_TOKENIZE_CHARS, description="A text.")
    add_special_tokens: bool | None = Field(
        None, description="Add what the tokenizer puts around a text. Default true for a prompt."
    )
    return_token_strs: bool | None = Field(None, description="Also return the tokens' texts.")
    messages: FastList[Message] | None = Field(None, min_length=1, max_length=4096)
    tools: FastList[Tool] | None = Field(None, max_length=128)
    add_generation_prompt: bool | None = Field(None, description="Default true.")
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise BadRequest(
                "'prompt' and 'messages' are alternatives",
                "both are given" if self.prompt is not None else "neither is given",
                "Send one of them.",
                param="prompt",
            )
        return self


class DetokenizeBody(RequestBody):
    """Token ids."""

    model: str | None = Field(None, max_length=2048, description="Any served name.")
    tokens: FastList[Annotated[int, Field(ge=0, lt=2**31)]] = Field(max_length=2**17)
    skip_special_tokens: bool | None = Field(None, description="Default false.")
