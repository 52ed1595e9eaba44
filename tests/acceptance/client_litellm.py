"""LiteLLM, as `openai/NAME` and as `hosted_vllm/NAME`, which has an HTTP client of its own."""

import asyncio
import json

import litellm
from acceptance import QUESTION, Session, same
from litellm import acompletion, completion, text_completion

SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "mood",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"mood": {"enum": ["good", "bad"]}},
            "required": ["mood"],
            "additionalProperties": False,
        },
    },
}


def main() -> None:
    session = Session.from_arguments()
    litellm.telemetry = False
    expected = session.chat(session.base, max_tokens=24)
    for provider in ("openai", "hosted_vllm"):
        fields = {"api_base": session.api, "api_key": "none", "temperature": 0, "max_retries": 0}
        name = f"{provider}/{session.base}"
        asked = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 24}
        with session.check(f"{provider}: completion"):
            answer = completion(model=name, **asked, **fields)
            same(answer.choices[0].message.content, expected)
            same(answer.usage.completion_tokens, 24)
        with session.check(f"{provider}: adapters"):
            for example in session.examples.values():
                messages = [{"role": "user", "content": example.prompt}]
                adapter = f"{provider}/{example.adapter}"
                answer = completion(model=adapter, messages=messages, **fields)
                same(answer.choices[0].message.content, example.answer)
        with session.check(f"{provider}: stream"):
            chunks = list(completion(model=name, stream=True, **asked, **fields))
            same("".join(c.choices[0].delta.content or "" for c in chunks), expected)
            assert len(chunks) > 20, f"{len(chunks)} chunks are no stream"
        with session.check(f"{provider}: acompletion"):
            answer = asyncio.run(acompletion(model=name, **asked, **fields))
            same(answer.choices[0].message.content, expected)
        with session.check(f"{provider}: response_format json_schema"):
            messages = [{"role": "user", "content": "I am happy!"}]
            answer = completion(model=name, messages=messages, response_format=SCHEMA, **fields)
            assert json.loads(answer.choices[0].message.content)["mood"] in ("good", "bad")
    with session.check("text_completion"):
        answer = text_completion(
            model=f"text-completion-openai/{session.base}",
            prompt="The sky is",
            max_tokens=8,
            temperature=0,
            api_base=session.api,
            api_key="none",
        )
        same(answer.choices[0].text, session.complete(session.base, "The sky is", max_tokens=8))
    session.finish()


if __name__ == "__main__":
    main()
