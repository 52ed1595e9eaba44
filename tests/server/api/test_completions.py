from __future__ import annotations

import pytest


async def test_shape_of_an_answer(client, engine):
    engine.text(" world", end=False)
    body = (await client.complete("Hello", max_tokens=5)).json
    assert body["id"].startswith("cmpl-")
    assert body["object"] == "text_completion"
    assert body["choices"] == [
        {
            "index": 0,
            "text": " world",
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
            "prompt_logprobs": None,
        }
    ]
    assert body["usage"]["total_tokens"] == 2


async def test_sixteen_tokens_by_default_or_what_fits(client, engine):
    await client.complete([5] * 10)
    await client.complete([5] * 2040)
    assert [request.sampling.max_tokens for request in engine.requests] == [16, 8]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Hi", [["Hi"]]),
        (["Hi", "Ho"], [["Hi"], ["Ho"]]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ],
)
async def test_all_forms_of_prompts(client, engine, tokenizer, prompt, expected):
    body = (await client.complete(prompt, max_tokens=1)).json
    ids = [tokenizer.encode(p[0]) if isinstance(p[0], str) else p for p in expected]
    assert [request.prompt for request in engine.requests] == ids
    assert [choice["index"] for choice in body["choices"]] == list(range(len(ids)))


async def test_choices_are_ordered_by_prompt_then_number(client, engine, tokenizer):
    engine.script = lambda r: tokenizer.encode(f"p{r.prompt[0]} s{r.sampling.seed}")
    body = (await client.complete([[5], [6]], n=2, seed=0, max_tokens=9)).json
    assert [choice["text"] for choice in body["choices"]] == ["p5 s0", "p5 s1", "p6 s0", "p6 s1"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["usage"]["prompt_tokens"] == 2
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 6


async def test_echo_returns_the_text_as_it_was_sent(client, engine, tokenizer):
    engine.text(" world", end=False)
    assert (await client.complete("Hello", echo=True)).json["choices"][0]["text"] == "Hello world"
    ids = tokenizer.encode("Hello")
    assert (await client.complete(ids, echo=True)).json["choices"][0]["text"] == "Hello world"
    assert engine.requests[0].sampling.prompt_logprobs is None


async def test_echo_alone_generates_nothing(client, engine):
    body = (await client.complete("Hello there", echo=True, max_tokens=0, logprobs=1)).json
    (choice,) = body["choices"]
    assert choice["text"] == "Hello there"
    assert choice["logprobs"]["tokens"] == ["Hello", " there"]
    assert choice["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 0
    assert engine.requests[0].sampling.max_tokens == 1  # the engine makes at least one


async def test_logprobs_are_parallel_lists(client, engine):
    engine.text(" née 🦊.", end=False)
    choice = (await client.complete("Hi", logprobs=2, max_tokens=20)).json["choices"][0]
    lists = choice["logprobs"]
    count = len(lists["tokens"])
    assert [len(lists[key]) for key in lists] == [count] * 4
    assert all(len(top) >= 2 for top in lists["top_logprobs"])
    for token, logprob, top in zip(
        lists["tokens"], lists["token_logprobs"], lists["top_logprobs"], strict=True
    ):
        assert top[token] == logprob
    assert engine.requests[0].sampling.prompt_logprobs is None


async def test_text_offsets_point_into_the_text(client, engine):
    engine.text(" née 🦊.")
    answer = await client.complete("Héllo", echo=True, logprobs=0, max_tokens=20)
    choice = answer.json["choices"][0]
    text, lists = choice["text"], choice["logprobs"]
    assert text == "Héllo née 🦊."
    offsets = lists["text_offset"]
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
    for token, offset in zip(lists["tokens"], offsets, strict=True):
        if not token.startswith("bytes:") and token != "<|im_end|>":
            assert text[offset:].startswith(token)
    assert offsets[-1] == len(text)  # the end of sequence has no text


@pytest.mark.parametrize("skip", [True, False])
async def test_text_offsets_count_the_special_tokens_that_are_echoed(client, engine, skip):
    prompt = "<|im_start|>user\nHéllo<|im_end|>\n"
    engine.text(" née.")
    fields = {"echo": True, "logprobs": 0, "max_tokens": 20, "skip_special_tokens": skip}
    choice = (await client.complete(prompt, **fields)).json["choices"][0]
    text, lists = choice["text"], choice["logprobs"]
    assert text.startswith(prompt)  # as it was sent, whatever is skipped in answers
    for token, offset in list(zip(lists["tokens"], lists["text_offset"], strict=True))[:-1]:
        if not token.startswith("bytes:"):
            assert text[offset:].startswith(token)


async def test_text_offsets_of_echoed_token_ids_leave_out_what_is_skipped(client, engine):
    ids = (await client.post("/tokenize", {"prompt": "<|im_start|>Hi"})).json["tokens"]
    engine.text(" there")
    choice = (
        await client.complete(ids, echo=True, logprobs=0, max_tokens=20, skip_special_tokens=True)
    ).json["choices"][0]
    assert choice["text"] == "Hi there"
    assert choice["logprobs"]["text_offset"][: len(ids)] == [0, *range(len(ids) - 1)]


async def test_the_stream_says_what_the_plain_answer_says(client, engine):
    engine.text(" née 🦊.")
    fields = {"echo": True, "logprobs": 2, "max_tokens": 20, "prompt_logprobs": 1}
    plain = (await client.complete("Hello there", **fields)).json["choices"][0]
    events = (await client.complete("Hello there", stream=True, **fields)).events
    choices = [event["choices"][0] for event in events]
    assert "".join(choice["text"] for choice in choices) == plain["text"]
    for key, values in plain["logprobs"].items():
        assert [value for choice in choices for value in choice["logprobs"][key]] == values
    assert choices[0]["prompt_logprobs"] == plain["prompt_logprobs"]
    assert choices[-1]["finish_reason"] == plain["finish_reason"] == "stop"
    assert events[0]["object"] == "text_completion"


async def test_streamed_text_is_one_event_per_token(client, engine):
    engine.text(" one two three", end=False)
    options = {"include_usage": True}
    events = (await client.complete("x", stream=True, stream_options=options)).events
    assert [e["choices"][0]["text"] for e in events[:-1]] == [" one", " two", " three"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 3


async def test_best_of_returns_the_likeliest_per_token(client, engine):
    best = 4
    first = list(engine.model.logprobs([5, 6]))
    # Seed i answers with the i-th likeliest token; they arrive in any order.
    engine.script = lambda request: [first[(request.sampling.seed * 3 + 1) % best]]
    answer = await client.complete([5, 6], best_of=best, n=2, seed=0, max_tokens=1, logprobs=0)
    body = answer.json
    chosen = [choice["logprobs"]["token_logprobs"][0] for choice in body["choices"]]
    assert chosen == list(engine.model.logprobs([5, 6]).values())[:2]
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert body["usage"]["completion_tokens"] == best


async def test_best_of_asks_for_logprobs_but_does_not_show_them(client, engine):
    body = (await client.complete([5, 6], best_of=2, n=1, max_tokens=2)).json
    assert engine.requests[0].sampling.logprobs == 0
    assert body["choices"][0]["logprobs"] is None


async def test_tokens_of_the_same_text_do_not_hide_each_other(client, engine, monkeypatch):
    chosen, rival = 700, 701
    known = {rival: -0.1, chosen: -3.0}
    monkeypatch.setattr(engine.model, "logprobs", lambda prefix: known)
    monkeypatch.setattr(type(engine.tokenizer), "token_text", lambda self, token: "same")
    engine.script = lambda request: [chosen]
    lists = (await client.complete([5], logprobs=1, max_tokens=1)).json["choices"][0]["logprobs"]
    assert lists["tokens"] == ["same"]
    assert lists["top_logprobs"] == [{"token_id:701": -0.1, "same": -3.0}]


async def test_special_tokens_of_the_tokenizer(client, engine, monkeypatch):
    given = []
    real = type(engine.tokenizer).encode

    def encode(self, text, add_special_tokens=True):
        given.append(add_special_tokens)
        return real(self, text, add_special_tokens)

    monkeypatch.setattr(type(engine.tokenizer), "encode", encode)
    await client.complete("Hi", max_tokens=1)
    await client.complete("Hi", max_tokens=1, add_special_tokens=False)
    assert given == [True, False]


async def test_long_texts_are_tokenised_beside_the_loop(client, engine):
    text = "word " * 1500
    assert (await client.complete(text, max_tokens=1)).status == 200
    assert len(engine.requests[0].prompt) > 1400
