"""What the server answers. For the OpenAPI document and the tests: the token path encodes bytes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class PromptTokensDetails(BaseModel):
    """Parts of the prompt."""

    cached_tokens: int = Field(description="Prompt tokens whose KV was already there.")


class Usage(BaseModel):
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int = Field(description="Of all answers, end-of-sequence tokens included.")
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


class TopLogprob(BaseModel):
    """One token that could have been there."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TopLogprob):
    """The token that was chosen, and the most likely ones."""

    top_logprobs: list[TopLogprob]
    fusion_weights: list[float] | None = Field(
        None, description="With fusion.trace: of the request's own model, the anchor, the experts."
    )


class ChatLogprobs(BaseModel):
    """One entry per generated token."""

    content: list[ChatTokenLogprob]


class CalledFunction(BaseModel):
    """What to call."""

    name: str
    arguments: str = Field(description="JSON text.")


class ToolCall(BaseModel):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class Citation(BaseModel):
    """Words of a page that an answer rests on."""

    start: int = Field(description="First character of the answer that they stand for.")
    end: int = Field(description="The character after the last.")
    document: int = Field(description="Number of the document in the request, from 0.")
    page: int = Field(description="Number of the page in it, from 1.")
    words: list[int] = Field(description="Numbers of the words on the page, from 0.")
    text: str
    box: list[float] = Field(description="Left, top, right and bottom around the words.")
    unit: str = Field(description="Of the box: px, pt, inch, mm, or relative to the page.")
    score: float = Field(description="1 where the letters are the same, less where some differ.")


class TaskAnswer(BaseModel):
    """The answer as its task reads it."""

    answer: str
    value: Any = None
    confidence: int | None = None
    document: int | None = None
    page: int | None = Field(None, description="Of a task that asks page by page: the best one.")


class AnswerMessage(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None
    citations: list[Citation] | None = None
    layout: TaskAnswer | None = None


class PlacedPage(BaseModel):
    """A page of a document of the request."""

    document: int
    page: int


class DocumentsSummary(BaseModel):
    """What was read, and what was left out of the prompt for room."""

    pages: int
    words: int = Field(description="Of the pages in the prompt.")
    dropped_pages: list[PlacedPage]
    cut_lines: int
    shrunk: bool = Field(description="Runs of spaces were shortened.")


class CandidateScore(BaseModel):
    """What the reranking found of an answer."""

    score: float
    candidate: int = Field(description="Its number among all that were drawn.")


class RerankSummary(BaseModel):
    """How the answers were chosen."""

    candidates: int = Field(description="Answers drawn for each prompt.")
    scorer: str | None = None
    truncated: int | None = Field(
        None, description="Candidates that were too long for the scorer, with their instruction."
    )
    scores: list[float] | None = Field(None, description="Of all candidates, prompt by prompt.")


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls", "abort"]
    stop_reason: str | int | None = Field(
        description="The stop string or stop token that ended it."
    )
    rerank: CandidateScore | None = None


class ChatCompletion(BaseModel):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: list[dict[str, Any] | None] | None = None
    layout: DocumentsSummary | None = None
    rerank: RerankSummary | None = None


class CompletionLogprobs(BaseModel):
    """Parallel lists, one entry per token; `null` for the first token of an echoed prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    fusion_weights: list[list[float] | None] | None = Field(
        None, description="With fusion.trace: of the request's own model, the anchor, the experts."
    )


class CompletionChoice(BaseModel):
    """One continuation; choice `i` of prompt `p` has index `p * n + i`."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length", "abort"]
    stop_reason: str | int | None
    prompt_logprobs: list[dict[str, Any] | None] | None = None
    rerank: CandidateScore | None = None


class Completion(BaseModel):
    """Continuations of texts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage
    rerank: RerankSummary | None = None


class LaidOutWord(BaseModel):
    """A word of a page."""

    text: str
    quad: list[float] = Field(description="x and y of its four corners, as it is read.")
    start: int = Field(description="Its first character in the text of the page; -1: not there.")
    end: int = Field(description="The character after its last.")
    confidence: float | None = None


class LaidOutPage(BaseModel):
    """A page as text."""

    page: int = Field(description="Its number, from 1.")
    width: float
    height: float
    unit: str = Field(description="px, pt, inch, mm, or relative.")
    text: str
    num_words: int
    words: list[LaidOutWord] | None = None


class Layout(BaseModel):
    """A document as text."""

    object: Literal["layout"] = "layout"
    pages: list[LaidOutPage]
    num_words: int


class ModelCard(BaseModel):
    """Something that can be named as `model`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "turret"
    root: str = Field(description="Where it was loaded from.")
    parent: str | None = Field(description="The base model of an adapter or a recipe.")
    kind: str = Field(
        description='"base", "recipe", "fusion", or the kind of the adapter, such as "lora".'
    )
    digest: str | None = Field(description="Identity of the content.")
    max_model_len: int | None = Field(description="Tokens of prompt and answer together.")
    permission: list[Any] = []


class ModelList(BaseModel):
    """Everything that can be named as `model`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class AdapterCard(BaseModel):
    """An adapter that is loaded, or (tier "shelf") known by its folder alone."""

    id: str
    object: Literal["adapter"] = "adapter"
    kind: str | None = None
    digest: str | None = None
    path: str = Field(description="The folder that is read.")
    source: str = Field(description="Where it comes from: a folder, archive, repository or URL.")
    rank: int | None = None
    targets: list[str] | None = None
    sites: dict[str, str] | None = Field(
        default=None,
        description='The layers of each target, as in `{"q_proj": "0-29"}`; empty where a module '
        "belongs to no layer.",
    )
    primitives: list[str] | None = Field(default=None, description="What it compiled to.")
    num_parameters: int | None = None
    num_bytes: int | None = None
    base_model: str | None = Field(default=None, description="As its own configuration names it.")
    served_base: str = Field(description="The base model of this server.")
    base_match: bool | None = Field(
        default=None,
        description="Are these one name? Null where it names none; whether shapes fit, `models` "
        "says.",
    )
    models: list[str] | None = Field(
        default=None,
        description="The models of this server that it fits, by its shapes: the base, auxiliaries. "
        "What fits none is not loaded.",
    )
    loaded_at: float | None = Field(default=None, description="Unix time in seconds.")
    num_virtual_tokens: int | None = Field(
        default=None,
        description="Positions that it puts before the prompt. They take room in the context and "
        "are not counted as tokens of the prompt.",
    )
    resident: bool = Field(
        default=False, description="On the device now; others are fetched when needed."
    )
    tier: Literal["device", "host", "disk", "shelf"] = Field(
        description="Where it is: ready to run; compiled; to be read again; never read so far."
    )
    pinned: bool = Field(
        default=False, description="It stays on the device, whatever else is asked for."
    )
    requests: int = Field(default=0, description="Requests in flight that use it.")
    last_used: float | None = Field(default=None, description="Unix time in seconds.")
    notes: list[str] = Field(default=[], description="What is worth knowing about it.")


class AdapterList(BaseModel):
    """All loaded adapters."""

    object: Literal["list"] = "list"
    data: list[AdapterCard]


class AdapterDeleted(BaseModel):
    """An adapter is no longer served."""

    id: str
    object: Literal["adapter"] = "adapter"
    deleted: Literal[True] = True


class Tokenized(BaseModel):
    """Token ids of a text or a conversation."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(BaseModel):
    """Text of token ids."""

    prompt: str


class Health(BaseModel):
    """The engine can answer; where it cannot there is an error."""

    status: str


class Readiness(BaseModel):
    """Whether new requests should come here."""

    status: Literal["ready", "not ready"]
    reasons: dict[str, str] = Field(
        description="What is not as it should be, by part; `database` alone keeps nobody away."
    )


class Version(BaseModel):
    """Of the running server."""

    version: str


class ErrorDetail(BaseModel):
    """What happened, why, and how to fix it."""

    message: str = Field(description="The three below as one text.")
    type: str
    param: str | None = Field(description="The field at fault, as a JSON path.")
    code: str | int | None
    what: str
    why: str
    fix: str


class ErrorBody(BaseModel):
    """Every error has this shape, also inside a stream."""

    error: ErrorDetail


class NotReady(ErrorBody):
    """Why new requests should not come here."""

    status: Literal["not ready"]
    reasons: dict[str, str]
