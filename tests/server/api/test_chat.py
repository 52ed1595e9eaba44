from __future__ import annotations

import math


async def test_shape_of_an_answer(client, engine):
    engine.text("Hello there.")
    answer = await client.chat("Hi", model="demo")
    body = answer.json
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert body["model"] == "demo"
    assert body["system_fingerprint"].endswith("-01234567")
    (choice,) = body["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "refusal": None, "content": "Hello there."},
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
    }


async def test_usage_counts_the_end_of_sequence_and_the_cached_prompt(client, engine):
    engine.text("Hello there.")
    usage = (await client.chat("Hi")).json["usage"]
    (request,) = engine.requests
    assert usage["prompt_tokens"] == len(request.prompt)
    assert usage["completion_tokens"] == 4  # Hello, there, ., <|im_end|>
    assert usage["total_tokens"] == len(request.prompt) + 4
    assert usage["prompt_tokens_details"] == {"cached_tokens": 3}


async def test_the_chat_template_makes_the_prompt(client, engine, tokenizer):
    await client.chat("What is 2+2?", max_tokens=1)
    text = tokenizer.decode(engine.requests[0].prompt, skip_special_tokens=False)
    assert text.endswith("<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n")


async def test_text_parts_and_continued_messages(client, engine, tokenizer):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Count"}], "name": "ann"},
        {"role": "assistant", "content": "one, two,", "refusal": None},
    ]
    answer = await client.post(
        "/v1/chat/completions",
        {
            "messages": messages,
            "max_tokens": 1,
            "continue_final_message": True,
            "add_generation_prompt": False,
        },
    )
    assert answer.status == 200
    text = tokenizer.decode(engine.requests[0].prompt, skip_special_tokens=False)
    assert text.endswith("<|im_start|>assistant\none, two,")


async def test_defaults_of_sampling(client, engine, tokenizer):
    await client.chat("Hi")
    (request,) = engine.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1, 1, 0, 0)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0, 0)
    assert (sampling.repetition_penalty, sampling.logit_bias) == (1, {})
    assert sampling.max_tokens == 2048 - len(request.prompt)  # what the context leaves
    assert sampling.stop_token_ids == tokenizer.eos_token_ids
    assert (sampling.logprobs, sampling.prompt_logprobs, sampling.grammar) == (None, None, None)
    assert request.adapters == ()
    assert request.deadline_s is None


async def test_every_field_reaches_the_engine(client, engine, tokenizer):
    await client.chat(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.5,
        logit_bias={"7": -100, "8": 1.5},
        seed=-5,
        max_completion_tokens=3,
        max_tokens=9,
        min_tokens=2,
        stop_token_ids=[11, 12, 11],
        cache_salt="salt",
        timeout_s=7.5,
    )
    (request,) = engine.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p) == (0.5, 0.9)
    assert (sampling.top_k, sampling.min_p) == (40, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert (sampling.repetition_penalty, sampling.logit_bias) == (1.5, {7: -100.0, 8: 1.5})
    assert sampling.seed == 2**63 - 5
    assert (sampling.max_tokens, sampling.min_tokens) == (3, 2)
    assert sampling.stop_token_ids == (11, 12, *tokenizer.eos_token_ids)
    assert request.cache_namespace == "/salt"
    assert request.deadline_s == 7.5


async def test_ignore_eos_leaves_the_named_stop_tokens(client, engine):
    await client.chat(ignore_eos=True, stop_token_ids=[11], max_tokens=1)
    assert engine.requests[0].sampling.stop_token_ids == (11,)


async def test_top_k_minus_one_is_off(client, engine):
    await client.chat(top_k=-1, max_tokens=1)
    assert engine.requests[0].sampling.top_k == 0


async def test_nulls_and_harmless_fields_are_accepted(client):
    answer = await client.chat(
        max_tokens=1,
        stop=None,
        n=None,
        stream=None,
        logprobs=None,
        top_logprobs=None,
        tools=None,
        tool_choice=None,
        response_format=None,
        seed=None,
        user="ann",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        parallel_tool_calls=True,
        modalities=["text"],
        audio=None,
        unheard_of=None,
        x_trace={"id": 1},
    )
    assert answer.status == 200, answer.body


async def test_n_answers_draw_from_consecutive_seeds(client, engine, tokenizer):
    texts = ["zero", "one", "two"]
    by_seed = {40 + i: tokenizer.encode(text) for i, text in enumerate(texts)}
    engine.script = lambda request: by_seed[request.sampling.seed]
    body = (await client.chat(n=3, seed=40)).json
    assert [c["index"] for c in body["choices"]] == [0, 1, 2]
    assert [c["message"]["content"] for c in body["choices"]] == texts
    assert body["usage"]["completion_tokens"] == sum(map(len, by_seed.values()))
    assert body["usage"]["prompt_tokens"] == len(engine.requests[0].prompt)
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 3
    assert len({request.id for request in engine.requests}) == 3


async def test_without_a_seed_answers_draw_different_ones(client, engine):
    await client.chat(n=2, max_tokens=1)
    await client.chat(n=2, max_tokens=1)
    seeds = [request.sampling.seed for request in engine.requests]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


async def test_finish_reasons(client, engine):
    engine.text("one two three", end=False)
    assert (await client.chat(max_tokens=2)).json["choices"][0]["finish_reason"] == "length"
    engine.text("one two three")
    assert (await client.chat(max_tokens=9)).json["choices"][0]["finish_reason"] == "stop"
    engine.text("one two three", end=False)
    engine.finish_reason = "abort"
    assert (await client.chat(max_tokens=3)).json["choices"][0]["finish_reason"] == "abort"


async def test_a_stop_string_across_tokens_ends_the_answer_and_the_request(client, engine):
    engine.text("alpha beta gamma delta")
    choice = (await client.chat(stop=["ta ga", "zzz"])).json["choices"][0]
    assert choice["message"]["content"] == "alpha be"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "ta ga")
    assert engine.cancelled == [engine.requests[0].id]


async def test_a_stop_string_can_be_kept(client, engine):
    engine.text("alpha beta gamma")
    answer = await client.chat(stop="beta", include_stop_str_in_output=True)
    assert answer.json["choices"][0]["message"]["content"] == "alpha beta"


async def test_a_stop_token_is_reported_and_left_out(client, engine, tokenizer):
    engine.text("alpha beta gamma")
    beta = tokenizer.encode(" beta")[0]
    choice = (await client.chat(stop_token_ids=[beta])).json["choices"][0]
    assert choice["message"]["content"] == "alpha"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", beta)
    kept = await client.chat(stop_token_ids=[beta], include_stop_str_in_output=True)
    assert kept.json["choices"][0]["message"]["content"] == "alpha beta"


async def test_special_tokens_can_be_shown(client, engine):
    engine.text("Hello")
    answer = await client.chat(skip_special_tokens=False, include_stop_str_in_output=True)
    assert answer.json["choices"][0]["message"]["content"] == "Hello<|im_end|>"


async def test_logprobs_have_one_entry_per_token(client, engine, tokenizer):
    engine.text("née 🦊")
    body = (await client.chat(logprobs=True, top_logprobs=3)).json
    entries = body["choices"][0]["logprobs"]["content"]
    assert len(entries) == body["usage"]["completion_tokens"]
    joined = b"".join(bytes(entry["bytes"]) for entry in entries)
    assert joined == "née 🦊<|im_end|>".encode()
    for entry in entries:
        assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
        assert entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) == 3
        values = [top["logprob"] for top in entry["top_logprobs"]]
        assert values == sorted(values, reverse=True)
    assert engine.requests[0].sampling.logprobs == 3


async def test_logprobs_without_alternatives(client, engine):
    engine.text("Hello")
    entries = (await client.chat(logprobs=True)).json["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in entries] == [[], []]
    assert engine.requests[0].sampling.logprobs == 0


async def test_infinite_logprobs_are_json(client, engine, monkeypatch):
    engine.text("Hello")
    real = engine.model.logprobs
    monkeypatch.setattr(engine.model, "logprobs", lambda p: dict.fromkeys(real(p), -math.inf))
    answer = await client.chat(logprobs=True, top_logprobs=1)
    entry = answer.json["choices"][0]["logprobs"]["content"][0]
    assert entry["top_logprobs"][0]["logprob"] == -9999.0


async def test_prompt_logprobs_in_vllms_form(client, engine, tokenizer):
    body = (await client.chat(prompt_logprobs=1, max_tokens=1)).json
    scored, prompt = body["prompt_logprobs"], engine.requests[0].prompt
    assert scored[0] is None
    assert len(scored) == len(prompt)
    for position in range(1, len(prompt)):
        chosen = scored[position][str(prompt[position])]
        assert chosen["decoded_token"] == tokenizer.token_text(prompt[position])
        best = max(scored[position].values(), key=lambda one: one["logprob"])
        assert best["rank"] == 1


async def test_an_adapter_is_a_model(client, engine):
    await client.post("/v1/load_lora_adapter", {"lora_name": "sql", "lora_path": "sql"})
    await client.post("/v1/load_lora_adapter", {"lora_name": "json", "lora_path": "json"})
    sql, json = engine.loaded
    body = (await client.chat(model="sql", max_tokens=1)).json
    assert body["model"] == "sql"
    await client.chat(model="sql:0.5+json", max_tokens=1)
    await client.chat(adapters=[{"name": "json", "weight": {"q_proj": 0.5}}], max_tokens=1)
    assert [{use.digest: use.weight for use in r.adapters} for r in engine.requests] == [
        {sql: 1.0},
        {sql: 0.5, json: 1.0},
        {json: {"q_proj": 0.5, "v_proj": 1.0}},
    ]


async def test_a_deadline_is_an_error(client, engine):
    engine.text("one two three", end=False)
    engine.finish_reason = "deadline"
    answer = await client.chat(timeout_s=2)
    assert answer.status == 504
    assert answer.json["error"]["code"] == "deadline_exceeded"
    assert answer.json["error"]["param"] == "timeout_s"
