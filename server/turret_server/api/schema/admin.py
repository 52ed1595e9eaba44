"""Bodies of the routes that manage adapters, and of the tokenizer's routes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from turret_server.api.schema.base import RequestBody
from turret_server.api.schema.chat import Message, Tool
from turret_server.api.schema.derive import DeriveBody
from turret_server.errors import BadRequest

Name = Annotated[str, Field(min_length=1, max_length=128)]
Path = Annotated[str, Field(min_length=1, max_length=4096)]


class LoadLoraBody(RequestBody):
    """vLLM's body; every kind of adapter is accepted."""

    lora_name: Name = Field(description="What clients will send as `model`.")
    lora_path: Path = Field(description="The adapter's folder, below an adapter root.")
    load_inplace: bool = Field(False, description="Replace an adapter of this name.")


class UnloadLoraBody(RequestBody):
    """vLLM's body."""

    lora_name: Name
    lora_int_id: int | None = Field(None, description="Ignored; adapters are known by name.")


class PutAdapterBody(RequestBody):
    """Where an adapter lies, or what to make it of: either `path` or `derive`."""

    path: Path | None = Field(None, description="Its folder, below an adapter root.")
    derive: DeriveBody | None = Field(None, description="Make it of other adapters.")

    @model_validator(mode="after")
    def _one_of_both(self) -> PutAdapterBody:
        if (self.path is None) == (self.derive is None):
            raise BadRequest(
                "'path' and 'derive' are alternatives",
                "both are given" if self.path is not None else "neither is given",
                "Send one of them.",
                param="path",
            )
        return self


class TokenizeBody(RequestBody):
    """Either `prompt` or `messages`."""

    model: str | None = Field(None, max_length=2048, description="Any served name.")
    prompt: str | None = Field(None, description="A text.")
    add_special_tokens: bool | None = Field(
        None, description="Add what the tokenizer puts around a text. Default true for a prompt."
    )
    return_token_strs: bool | None = Field(None, description="Also return the tokens' texts.")
    messages: list[Message] | None = Field(None, min_length=1, max_length=4096)
    tools: list[Tool] | None = Field(None, max_length=128)
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
    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(max_length=2**17)
    skip_special_tokens: bool | None = Field(None, description="Default false.")
