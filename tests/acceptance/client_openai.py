"""OpenAI's own client: the yardstick for the others."""

import asyncio
from typing import Literal

from acceptance import QUESTION, Session, same
from openai import AsyncOpenAI, NotFoundError, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, ConfigDict

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Mood(BaseModel):
    model_config = ConfigDict(extra="forbid")

    mood: Literal["good", "bad"]


def user(prompt: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": prompt}]


def main() -> None:
    session = Session.from_arguments()
    client = OpenAI(base_url=session.api, api_key="none", max_retries=0)
    base = session.base
    with session.check("models"):
        names = {model.id for model in client.models.list()}
        assert {base, *session.examples} <= names, names
        same(client.models.retrieve("sql").id, "sql")
    with session.check("chat with the base"):
        answer = client.chat.completions.create(
            model=base, messages=user(QUESTION), temperature=0, max_tokens=24, logprobs=True
        )
        same(answer.choices[0].message.content, session.chat(base, max_tokens=24))
        same(len(answer.choices[0].logprobs.content), answer.usage.completion_tokens)
    for example in session.examples.values():
        with session.check(f"chat with {example.adapter}"):
            answer = client.chat.completions.create(
                model=example.adapter, messages=user(example.prompt), temperature=0
            )
            same(answer.choices[0].message.content, example.answer)
            same(answer.choices[0].finish_reason, "stop")
    with session.check("stream with usage"):
        chunks = list(
            client.chat.completions.create(
                model=base,
                messages=user(QUESTION),
                temperature=0,
                max_tokens=24,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        same(text, session.chat(base, max_tokens=24))
        same((chunks[-1].choices, chunks[-1].usage.completion_tokens), ([], 24))
        assert len(chunks) > 20, f"{len(chunks)} chunks are no stream"
    with session.check("base and adapters at once"):
        asyncio.run(all_at_once(session))
    with session.check("completions from token ids, with echo and log-probabilities"):
        ids = session.post("/tokenize", {"prompt": "The sky is", "add_special_tokens": False})
        answer = client.completions.create(
            model=base, prompt=ids["tokens"], max_tokens=4, temperature=0, echo=True, logprobs=2
        )
        choice = answer.choices[0]
        same(choice.text, "The sky is" + session.complete(base, "The sky is", max_tokens=4))
        same(len(choice.logprobs.token_logprobs), len(ids["tokens"]) + 4)
        same(choice.logprobs.token_logprobs[0], None)
    with session.check("tools"):
        answer = client.chat.completions.create(
            model=base,
            messages=user("What is the weather in Paris?"),
            tools=[WEATHER],
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=0,
            max_tokens=80,
        )
        (call,) = answer.choices[0].message.tool_calls
        same(call.function.name, "get_weather")
        same(call.function.arguments.replace(" ", ""), '{"city":"Paris"}')
        same(answer.choices[0].finish_reason, "tool_calls")
    with session.check("parse"):
        answer = client.chat.completions.parse(
            model=base, messages=user("I am happy!"), response_format=Mood, temperature=0
        )
        assert answer.choices[0].message.parsed.mood in ("good", "bad")
    with session.check("an unknown model"):
        refused = None
        try:
            client.chat.completions.create(model="nobody", messages=user(QUESTION))
        except NotFoundError as error:
            refused = error
        assert refused is not None, "it was answered"
        same((refused.status_code, refused.param), (404, "model"))
        assert "nobody" in refused.message, refused.message
    session.finish()


async def all_at_once(session: Session) -> None:
    """Every adapter and the base in flight together, two of each."""
    asked = [(session.base, QUESTION, session.chat(session.base, max_tokens=24))]
    asked += [(e.adapter, e.prompt, e.answer) for e in session.examples.values()]
    async with AsyncOpenAI(base_url=session.api, api_key="none", max_retries=0) as client:
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(
                    model=model,
                    messages=user(prompt),
                    temperature=0,
                    max_tokens=24 if model == session.base else 80,
                )
                for model, prompt, _ in asked * 2
            )
        )
    texts = [answer.choices[0].message.content for answer in answers]
    same(texts, [expected for *_, expected in asked] * 2)


if __name__ == "__main__":
    main()
