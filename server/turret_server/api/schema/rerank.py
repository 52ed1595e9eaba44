"""The body part that reranks answers, the table `rerank` of recipes, and POST /v1/rerank."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from turret_server.api.invalid_field import invalid_field
from turret_server.api.schema.base import ClosedPart, RequestBody
from turret_server.pipeline.rerank import RerankSpec

MAX_CANDIDATES = 128
MAX_DOCUMENTS = 1000  # more than Cohere's API recommends
# A scorer with a chat template reads the query once for every document, before any quota is known.
MAX_QUERY_CHARS = 65_536


class RerankPart(ClosedPart):
    """Draw several answers and return the best n: docs/reranking.md."""

    scorer: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="A model of --scorer. Left out: the likeliest per token are best.",
    )
    candidates: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] = Field(
        4, description="Answers to draw for each prompt. Default 4."
    )
    return_scores: bool | None = Field(None, description="Tell the scores of all candidates.")

    def spec(self) -> RerankSpec:
        """What it says, for the pipeline."""
        return RerankSpec(self.candidates, self.scorer, bool(self.return_scores))


def parse_rerank(table: Any) -> RerankSpec:
    """A recipe's table `rerank`, by the rules of bodies.

    Raises:
        ValueError: says what is wrong, and where.
    """
    try:
        return RerankPart.model_validate(table).spec()
    except ValidationError as error:
        found = invalid_field(error.errors()[0], "rerank")
        raise ValueError(f"{found.what}: {found.why}") from None


def _document(value: Any) -> Any:
    """Both forms of Cohere's and Jina's API: a text, or an object with one."""
    if isinstance(value, dict) and value.keys() == {"text"}:
        return value["text"]
    return value


Document = Annotated[
    str,
    BeforeValidator(_document),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "properties": {"text": {"type": "string"}},
                    "required": ["text"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]


class RerankBody(RequestBody):
    """Texts to be put in order by how well they answer a query."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "cappy",
                    "query": "What is the capital of France?",
                    "documents": ["Paris.", "It is a fine city."],
                }
            ]
        }
    )

    model: str = Field(min_length=1, max_length=256, description="A model of --scorer.")
    query: str = Field(
        min_length=1, max_length=MAX_QUERY_CHARS, description="What the documents should answer."
    )
    documents: list[Document] = Field(min_length=1, max_length=MAX_DOCUMENTS)
    top_n: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        None, description="Return this many of the best. Default all."
    )
    return_documents: bool | None = Field(
        None, description="Return the texts, too. Default true, as vLLM does."
    )
    use_activation: bool | None = Field(
        None,
        description="Scores from 0 to 1: the sigmoid of a single output, the probability of a "
        "label. Default true, as vLLM does; false gives what `rerank` in completions gives.",
    )


class RankedText(BaseModel):
    """A text that was put in order."""

    text: str


class RankedDocument(BaseModel):
    """One text and its score."""

    index: int = Field(description="Its place in the request.")
    relevance_score: float
    document: RankedText | None = None


class RerankUsage(BaseModel):
    """Tokens that the scorer read."""

    prompt_tokens: int
    total_tokens: int


class Reranking(BaseModel):
    """Texts in order, the best first."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: RerankUsage
