from __future__ import annotations

import pytest


async def test_a_text(client, tokenizer):
    body = (await client.post("/tokenize", {"prompt": "Hello 🦊", "model": "demo"})).json
    assert body["tokens"] == tokenizer.encode("Hello 🦊")
    assert body["count"] == len(body["tokens"])
    assert body["max_model_len"] == 2048
    assert body["token_strs"] is None


async def test_token_texts(client):
    body = (await client.post("/tokenize", {"prompt": "Hello", "return_token_strs": True})).json
    assert body["token_strs"] == ["Hello"]


async def test_messages_as_the_chat_route_sees_them(client, engine):
    messages = [{"role": "user", "content": "Hi"}]
    await client.chat("Hi", max_tokens=1)
    body = (await client.post("/tokenize", {"messages": messages})).json
    assert body["tokens"] == engine.requests[0].prompt
    shorter = {"messages": messages, "add_generation_prompt": False}
    assert (await client.post("/tokenize", shorter)).json["count"] < body["count"]


async def test_there_and_back(client):
    text = "Grüße\n\t日本語 🦊 <|im_end|>"
    tokens = (await client.post("/tokenize", {"prompt": text})).json["tokens"]
    assert (await client.post("/detokenize", {"tokens": tokens})).json == {"prompt": text}
    plain = {"tokens": tokens, "skip_special_tokens": True}
    answer = await client.post("/detokenize", plain)
    assert answer.json["prompt"] == text.removesuffix("<|im_end|>")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "messages"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"text": "a"}, "text"),
        ("/tokenize", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [10**6]}, "tokens[0]"),
        ("/detokenize", {"tokens": [1, "2"]}, "tokens[1]"),
    ],
)
async def test_refused(client, path, body, param):
    answer = await client.post(path, body)
    assert (answer.status, answer.json["error"]["param"]) == (400, param)


async def test_an_unknown_model(client):
    assert (await client.post("/tokenize", {"prompt": "a", "model": "nope"})).status == 404
    assert (await client.post("/detokenize", {"tokens": [1], "model": "nope"})).status == 404
