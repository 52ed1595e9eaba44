"""The tokenizer over HTTP: with these routes a client needs neither transformers nor its files."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from turret_server.api.json_body import JsonRoute
from turret_server.api.prepare import off_loop
from turret_server.api.schema.admin import MAX_TOKENIZE_CHARS, DetokenizeBody, TokenizeBody
from turret_server.api.schema.chat import plain_messages, plain_tools, text_size
from turret_server.api.schema.responses import Detokenized, Tokenized
from turret_server.api.service import Service, service_of
from turret_server.errors import BadRequest

router = APIRouter(route_class=JsonRoute, tags=["Tokenizer"])

ServiceDep = Annotated[Service, Depends(service_of)]


@router.post("/tokenize", summary="Text or messages to token ids")
async def tokenize(body: TokenizeBody, service: ServiceDep) -> Tokenized:
    """Tokenise a text, or a conversation as the chat route would."""
    service.check_model(body.model)
    tokenizer = service.tokenizer
    if body.prompt is not None:
        prompt, special = body.prompt, body.add_special_tokens is not False
        size, encode = len(prompt), lambda: tokenizer.encode(prompt, add_special_tokens=special)
    else:
        messages, _ = plain_messages(body.messages or [])
        tools = plain_tools(body.tools)
        size = text_size([messages, tools, body.chat_template_kwargs])
        if size > MAX_TOKENIZE_CHARS:
            raise BadRequest(
                f"'messages' and 'tools' have {size} characters",
                f"at most {MAX_TOKENIZE_CHARS} are tokenised at once",
                "Shorten the conversation.",
                param="messages",
            )
        encode = partial(
            service.prompt.render,
            messages,
            tools,
            body.add_generation_prompt is not False,
            bool(body.continue_final_message),
            body.chat_template_kwargs,
        )

    def work() -> tuple[list[int], list[str] | None]:
        tokens = encode()
        return tokens, [tokenizer.token_text(t) for t in tokens] if body.return_token_strs else None

    tokens, texts = await off_loop(size, work)
    return Tokenized(
        count=len(tokens),
        max_model_len=service.ready.max_model_len,
        tokens=tokens,
        token_strs=texts,
    )


@router.post("/detokenize", summary="Token ids to text")
async def detokenize(body: DetokenizeBody, service: ServiceDep) -> Detokenized:
    """Decode token ids; special tokens are kept unless told otherwise."""
    service.check_model(body.model)
    if (largest := max(body.tokens, default=0)) >= service.tokenizer.vocab_size:
        at = f"tokens[{body.tokens.index(largest)}]"
        raise BadRequest(
            f"{at!r} is {largest}",
            f"the vocabulary has tokens 0 to {service.tokenizer.vocab_size - 1}",
            param=at,
        )
    skip = bool(body.skip_special_tokens)
    text = await off_loop(
        len(body.tokens), lambda: service.tokenizer.decode(body.tokens, skip_special_tokens=skip)
    )
    return Detokenized(prompt=text)


@router.get("/tokenizer_info", summary="Describe the tokenizer")
async def tokenizer_info(service: ServiceDep) -> dict[str, Any]:
    """Special tokens, vocabulary size and chat template of the base model."""
    return service.tokenizer.info()
