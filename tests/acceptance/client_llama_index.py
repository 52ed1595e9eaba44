"""LlamaIndex's OpenAILike, over the chat route and over text completions."""

import asyncio

from acceptance import QUESTION, Session, same
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike


def main() -> None:
    session = Session.from_arguments()

    def model(name: str, *, chat: bool, max_tokens: int = 24) -> OpenAILike:
        return OpenAILike(
            model=name,
            api_base=session.api,
            api_key="none",
            is_chat_model=chat,
            temperature=0,
            max_tokens=max_tokens,
            max_retries=0,
        )

    base = model(session.base, chat=True)
    expected = session.chat(session.base, max_tokens=24)
    with session.check("complete"):
        same(base.complete(QUESTION).text, expected)
    with session.check("complete with adapters"):
        for example in session.examples.values():
            adapted = model(example.adapter, chat=True, max_tokens=80)
            same(adapted.complete(example.prompt).text, example.answer)
    with session.check("stream_complete"):
        chunks = list(base.stream_complete(QUESTION))
        same(chunks[-1].text, expected)
        same("".join(chunk.delta or "" for chunk in chunks), expected)
        assert len(chunks) > 20, f"{len(chunks)} chunks are no stream"
    with session.check("chat, stream_chat"):
        messages = [ChatMessage(role="user", content=QUESTION)]
        same(base.chat(messages).message.content, expected)
        same(list(base.stream_chat(messages))[-1].message.content, expected)
    with session.check("acomplete"):
        same(asyncio.run(base.acomplete(QUESTION)).text, expected)
    text = model(session.base, chat=False)
    continued = session.complete(session.base, "The sky is", max_tokens=24)
    with session.check("complete and stream over /v1/completions"):
        same(text.complete("The sky is").text, continued)
        same(list(text.stream_complete("The sky is"))[-1].text, continued)
    session.finish()


if __name__ == "__main__":
    main()
