"""LangChain's ChatOpenAI: invoke, stream, batch, tools, structured output."""

from typing import Literal

from acceptance import QUESTION, Session, same
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


@tool
def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """Tell today's weather in a city."""
    return f"It rains in {city}."


class Person(BaseModel):
    """A person."""

    name: Literal["Ada", "Bob"]
    age: int


def main() -> None:
    session = Session.from_arguments()

    def model(name: str, max_tokens: int | None = None) -> ChatOpenAI:
        return ChatOpenAI(
            base_url=session.api,
            api_key="none",
            model=name,
            temperature=0,
            max_tokens=max_tokens,
            max_retries=0,
            stream_usage=True,
        )

    base = model(session.base, 24)
    expected = session.chat(session.base, max_tokens=24)
    with session.check("invoke"):
        answer = base.invoke(QUESTION)
        same(answer.content, expected)
        same(answer.usage_metadata["output_tokens"], 24)
        same(answer.response_metadata["model_name"], session.base)
    with session.check("invoke adapters"):
        for example in session.examples.values():
            same(model(example.adapter).invoke(example.prompt).content, example.answer)
    with session.check("stream"):
        chunks = list(base.stream(QUESTION))
        same("".join(chunk.content for chunk in chunks), expected)
        assert len(chunks) > 20, f"{len(chunks)} chunks are no stream"
        same(sum(c.usage_metadata["output_tokens"] for c in chunks if c.usage_metadata), 24)
    with session.check("batch"):
        example = session.examples["dates"]
        answers = model("dates").batch([example.prompt] * 4)
        same([answer.content for answer in answers], [example.answer] * 4)
    with session.check("bind_tools, and the tool's result sent back"):
        bound = model(session.base, 80).bind_tools(
            [get_weather], tool_choice="any", parallel_tool_calls=False
        )
        question = HumanMessage("What is the weather in Paris?")
        answer = bound.invoke([question])
        (call,) = answer.tool_calls
        same((call["name"], call["args"]), ("get_weather", {"city": "Paris"}))
        result = get_weather.invoke(call)
        assert isinstance(result, ToolMessage)
        free = model(session.base, 24).bind_tools([get_weather], tool_choice="none")
        assert free.invoke([question, answer, result]).content.strip()
    with session.check("bind_tools, streamed"):
        bound = model(session.base, 80).bind_tools(
            [get_weather], tool_choice="get_weather", parallel_tool_calls=False
        )
        whole = None
        for chunk in bound.stream("What is the weather in Paris?"):
            whole = chunk if whole is None else whole + chunk
        (call,) = whole.tool_calls
        same((call["name"], call["args"]), ("get_weather", {"city": "Paris"}))
    for method in ("json_schema", "function_calling"):
        with session.check(f"with_structured_output, {method}"):
            structured = model(session.base, 80).with_structured_output(Person, method=method)
            answer = structured.invoke("Bob is 42 years old.")
            same((type(answer), answer.name, answer.age), (Person, "Bob", 42))
    session.finish()


if __name__ == "__main__":
    main()
