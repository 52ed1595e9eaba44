"""The body part that fuses a request with further models, and the table `fusion` of recipes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from turret_server.api.invalid_field import invalid_field
from turret_server.api.schema.adapter import AdapterChoice
from turret_server.api.schema.base import ClosedPart, FastList, Part
from turret_server.errors import BadRequest
from turret_server.pipeline.fusion import MAX_WEIGHT, FusionSpec, MemberSpec, Method

MAX_EXPERTS = 64  # of any fusion; a server allows fewer

_TOKENS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}


def _prompt(value: Any) -> Any:
    if isinstance(value, list) and value and set(map(type, value)) == {int} and min(value) >= 0:
        return value
    if value is None or (isinstance(value, str) and value):
        return value
    raise ValueError("a prompt is a non-empty string or a non-empty list of token ids")


def _weights(value: Any) -> Any:
    numbers = value if isinstance(value, list) else [value]
    if value is None:
        return None
    if not numbers or any(type(w) not in (int, float) for w in numbers):
        raise ValueError("weights are a number, or a list of numbers")
    if not all(-MAX_WEIGHT <= w <= MAX_WEIGHT for w in numbers):
        raise ValueError(f"weights lie between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}")
    return value


def _named(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


OtherPrompt = Annotated[
    Any,
    BeforeValidator(_prompt),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, _TOKENS, {"type": "null"}]}),
]
Temperature = Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)]


class MemberMessage(Part):
    """A message of a member's own conversation. Further fields reach the chat template."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Any = Field(None, description="A string, or text parts.")


class FusionMember(ClosedPart):
    """A further model. What it leaves out it shares with the request: model, prompt."""

    model: str | None = Field(
        None,
        max_length=2048,
        description="As `model` of a body. Left out: the base with `adapters`, or without them the "
        "request's own model.",
    )
    adapters: list[AdapterChoice] | None = Field(
        None, max_length=16, description="Adapters to stack on what `model` names."
    )
    prompt: OtherPrompt = Field(None, description="A text or token ids in place of the prompt.")
    messages: Annotated[FastList[MemberMessage], Field(min_length=1, max_length=4096)] | None = (
        Field(None, description="Chat only: a conversation in place of the request's own.")
    )
    system: str | None = Field(
        None, max_length=65_536, description='Chat only: another system message, or none ("").'
    )
    documents: bool | None = Field(
        None,
        description="Chat only: false leaves the documents out of its prompt, which is otherwise "
        "that of the request.",
    )
    temperature: Temperature | None = Field(None, description="Of its logits. Default 1.")

    def spec(self) -> MemberSpec:
        """What it says, for the pipeline."""
        messages = None
        if self.messages is not None:
            messages = tuple(m.model_dump(exclude_unset=True) for m in self.messages)
        return MemberSpec(
            model=self.model,
            adapters=tuple((adapter.name, adapter.weight) for adapter in self.adapters or ()),
            prompt=self.prompt,
            messages=messages,
            system=self.system,
            documents=self.documents is not False,
            temperature=1.0 if self.temperature is None else self.temperature,
        )


Member = Annotated[FusionMember, BeforeValidator(_named, json_schema_input_type=str | FusionMember)]


class FusionBody(ClosedPart):
    """Several models, one distribution: docs/fusion.md has the formula of each method."""

    method: Method = Field(description="How logits are combined.")
    experts: Annotated[list[Member], Field(max_length=MAX_EXPERTS)] | None = Field(
        None, description="Further models: names, or objects."
    )
    anchor: Member | None = Field(
        None, description="What experts were tuned from; the amateur; or with the lesser prompt."
    )
    negative_prompt: OtherPrompt = Field(
        None,
        description="The request's own model with this prompt is the anchor; in a chat, a "
        "conversation of this one message.",
    )
    weights: Annotated[
        Any,
        BeforeValidator(_weights),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "number", "minimum": -16, "maximum": 16},
                    {"type": "array", "items": {"type": "number", "minimum": -16, "maximum": 16}},
                    {"type": "null"},
                ]
            }
        ),
    ] = Field(
        None,
        description="One number for all experts or one each; for sum, product and mixture one per "
        "member, the request's own first.",
    )
    temperature: Temperature | None = Field(
        None, description="Of the logits of the request's own model, before they are combined."
    )
    plausible: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = Field(
        None,
        description="Tokens stay that the request's own model finds at least this likely, relative "
        "to its likeliest (alpha of contrastive decoding).",
    )
    nucleus: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        None, description="Tokens stay that are in its nucleus of this probability (DExperts)."
    )
    range: Annotated[float, Field(gt=0, le=16, allow_inf_nan=False)] | None = Field(
        None, description="The largest dynamic weight. Default 2."
    )
    search: Literal["exact", "grid"] | None = Field(
        None, description="How dynamic weights are found. Default exact; grid is as published."
    )
    joint: bool | None = Field(
        None, description="All experts act at once. Default: the best one at each token."
    )
    trace: bool | None = Field(
        None, description="With logprobs: the weights of every token beside its log-probability."
    )

    def spec(self) -> FusionSpec:
        """What it says, for the pipeline.

        Raises:
            BadRequest: an anchor and a negative prompt.
        """
        anchor = None if self.anchor is None else self.anchor.spec()
        if self.negative_prompt is not None:
            if anchor is not None:
                raise BadRequest(
                    "the fusion has an anchor and a negative prompt",
                    "a negative prompt is an anchor of the request's own model",
                    "Give the anchor this prompt, and leave negative_prompt out.",
                    param="fusion.negative_prompt",
                )
            anchor = MemberSpec(prompt=self.negative_prompt)
        weights = self.weights
        return FusionSpec(
            method=self.method,
            experts=tuple(expert.spec() for expert in self.experts or ()),
            anchor=anchor,
            weights=tuple(weights) if isinstance(weights, list) else weights,
            temperature=1.0 if self.temperature is None else self.temperature,
            plausible=self.plausible,
            nucleus=self.nucleus,
            range=self.range,
            search=self.search or "exact",
            joint=bool(self.joint),
            trace=bool(self.trace),
        )


def parse_fusion(table: Any) -> FusionSpec:
    """A recipe's table `fusion`, by the rules of bodies.

    Raises:
        ValueError: says what is wrong, and where.
        BadRequest: likewise.
    """
    try:
        return FusionBody.model_validate(table).spec()
    except ValidationError as error:
        found = invalid_field(error.errors()[0], "fusion")
        raise ValueError(f"{found.what}: {found.why}") from None
