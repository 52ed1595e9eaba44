"""Fields that constrain the form of an answer; at most one may be used in a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, Field

from turret_server.api.schema.base import ClosedPart, Part
from turret_server.errors import BadRequest

MAX_PATTERN_CHARS = 65_536

Pattern = Annotated[str, Field(min_length=1, max_length=MAX_PATTERN_CHARS)]
Choices = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=4096)]], Field(min_length=1, max_length=8192)
]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must look like.

    Attributes:
        kind: which of `pipeline.constraints.Constraints`' methods compiles it.
        value: its argument; None for "json_object".
        param: the field it came from.
        strict: refuse keywords of a schema that cannot be enforced.
    """

    kind: Literal["json_schema", "json_object", "regex", "grammar", "choice"]
    value: Any
    param: str
    strict: bool = False


class JsonSchemaFormat(Part):
    """A named JSON schema."""

    name: str | None = Field(None, max_length=64, description="For the client's own use.")
    description: str | None = Field(None, max_length=65_536)
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="A JSON schema.")
    strict: bool | None = Field(
        None, description="Refuse keywords that cannot be enforced; else they are ignored."
    )


class ResponseFormat(ClosedPart):
    """OpenAI's form of a constraint."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(ClosedPart):
    """vLLM's form of a constraint: exactly one field."""

    json_: dict[str, Any] | str | None = Field(None, alias="json", description="A JSON schema.")
    json_object: bool | None = Field(None, description="Any JSON object.")
    regex: Pattern | None = Field(None, description="A regular expression for the whole answer.")
    choice: Choices | None = Field(None, description="The answer is one of these strings.")
    grammar: Pattern | None = Field(None, description="A Lark grammar, as llguidance reads it.")


class ConstraintFields(BaseModel):
    """The fields themselves, mixed into both kinds of completion."""

    response_format: ResponseFormat | None = Field(
        None, description="`text`, any JSON object, or JSON that follows a schema."
    )
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = Field(None, description="A JSON schema.")
    guided_regex: Pattern | None = Field(
        None, description="A regular expression for the whole answer."
    )
    guided_choice: Choices | None = Field(None, description="The answer is one of these strings.")
    guided_grammar: Pattern | None = Field(
        None, description="A Lark grammar, as llguidance reads it."
    )

    def constraint(self) -> Constraint | None:
        """The one constraint of the request.

        Raises:
            BadRequest: there are two, or a schema is missing.
        """
        found = [*self._openai(), *self._guided(), *self._structured()]
        if len(found) > 1:
            raise BadRequest(
                f"{found[0].param!r} and {found[1].param!r} contradict each other",
                "an answer can follow one constraint only",
                "Send one of them.",
                param=found[1].param,
            )
        return found[0] if found else None

    def _openai(self) -> list[Constraint]:
        match self.response_format:
            case ResponseFormat(type="json_object"):
                return [Constraint("json_object", None, "response_format")]
            case ResponseFormat(type="json_schema", json_schema=given):
                if given is None or given.schema_ is None:
                    raise BadRequest(
                        "'response_format.json_schema.schema' is missing",
                        "the type 'json_schema' needs the schema to follow",
                        param="response_format.json_schema.schema",
                    )
                param = "response_format.json_schema.schema"
                return [Constraint("json_schema", given.schema_, param, bool(given.strict))]
        return []

    def _guided(self) -> list[Constraint]:
        given = {
            "json_schema": ("guided_json", _schema(self.guided_json, "guided_json")),
            "regex": ("guided_regex", self.guided_regex),
            "choice": ("guided_choice", self.guided_choice),
            "grammar": ("guided_grammar", self.guided_grammar),
        }
        return [Constraint(k, v, p) for k, (p, v) in given.items() if v is not None]  # type: ignore[arg-type]

    def _structured(self) -> list[Constraint]:
        if (outputs := self.structured_outputs) is None:
            return []
        given = {
            "json_schema": ("json", _schema(outputs.json_, "structured_outputs.json")),
            "regex": ("regex", outputs.regex),
            "choice": ("choice", outputs.choice),
            "grammar": ("grammar", outputs.grammar),
        }
        found = [
            Constraint(kind, value, f"structured_outputs.{name}")  # type: ignore[arg-type]
            for kind, (name, value) in given.items()
            if value is not None
        ]
        if outputs.json_object:
            found.append(Constraint("json_object", None, "structured_outputs.json_object"))
        return found


def _schema(value: dict[str, Any] | str | None, param: str) -> Any:
    """vLLM's clients may send the schema as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadRequest(f"{param!r} is not JSON", str(error), param=param) from error
