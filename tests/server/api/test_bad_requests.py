"""Everything malformed is refused at once and by name; nothing of it reaches the engine."""

from __future__ import annotations

import pytest

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
USER = {"role": "user", "content": "Hi"}

# Fields that both routes share: (value, the path that the error must name).
SHARED = [
    ("model", 5, "model"),
    ("model", "x" * 3000, "model"),
    ("stream", "yes", "stream"),
    ("stream", 1, "stream"),
    ("stream_options", [], "stream_options"),
    ("stream_options", {"include_usage": "yes"}, "stream_options.include_usage"),
    ("n", 0, "n"),
    ("n", 129, "n"),
    ("n", 10**9, "n"),
    ("n", 10**30, "n"),
    ("n", 1.5, "n"),
    ("n", True, "n"),
    ("n", "1", "n"),
    ("max_tokens", -1, "max_tokens"),
    ("max_tokens", 2**31, "max_tokens"),
    ("max_tokens", "5", "max_tokens"),
    ("min_tokens", -1, "min_tokens"),
    ("min_tokens", 5000, "min_tokens"),
    ("temperature", -0.1, "temperature"),
    ("temperature", 2.1, "temperature"),
    ("temperature", "hot", "temperature"),
    ("top_p", 0, "top_p"),
    ("top_p", 1.01, "top_p"),
    ("top_k", -2, "top_k"),
    ("top_k", 10**6, "top_k"),
    ("min_p", -0.1, "min_p"),
    ("min_p", 1.1, "min_p"),
    ("presence_penalty", 2.1, "presence_penalty"),
    ("frequency_penalty", -2.1, "frequency_penalty"),
    ("repetition_penalty", 0, "repetition_penalty"),
    ("repetition_penalty", 11, "repetition_penalty"),
    ("logit_bias", [], "logit_bias"),
    ("logit_bias", {"a": 1}, "logit_bias.a"),
    ("logit_bias", {"-1": 1}, "logit_bias.-1"),
    ("logit_bias", {"5": 101}, "logit_bias.5"),
    ("logit_bias", {"5": "x"}, "logit_bias.5"),
    ("logit_bias", {"5": True}, "logit_bias.5"),
    ("logit_bias", {"999999": 1}, "logit_bias.999999"),
    ("logit_bias", {str(i): 1 for i in range(1025)}, "logit_bias"),
    ("seed", 2**63, "seed"),
    ("seed", -(2**63) - 1, "seed"),
    ("seed", 1.5, "seed"),
    ("stop", 5, "stop"),
    ("stop", "", "stop"),
    ("stop", ["a", ""], "stop[1]"),
    ("stop", ["a", 5], "stop[1]"),
    ("stop", ["a"] * 17, "stop"),
    ("stop", "x" * 2000, "stop"),
    ("stop_token_ids", [-1], "stop_token_ids[0]"),
    ("stop_token_ids", [10**6], "stop_token_ids[0]"),
    ("stop_token_ids", 5, "stop_token_ids"),
    ("stop_token_ids", [1] * 257, "stop_token_ids"),
    ("ignore_eos", "no", "ignore_eos"),
    ("prompt_logprobs", 21, "prompt_logprobs"),
    ("prompt_logprobs", -1, "prompt_logprobs"),
    ("cache_salt", "", "cache_salt"),
    ("cache_salt", "x" * 300, "cache_salt"),
    ("timeout_s", 0, "timeout_s"),
    ("timeout_s", 10**5, "timeout_s"),
    ("timeout_s", 5000, "timeout_s"),  # above the server's own limit
    ("adapters", {}, "adapters"),
    ("adapters", [{}], "adapters[0].name"),
    ("adapters", [{"name": "a", "weight": "x"}], "adapters[0].weight"),
    ("adapters", [{"name": "a", "weight": True}], "adapters[0].weight"),
    ("adapters", [{"name": "a", "weigth": 1}], "adapters[0].weigth"),
    ("adapters", [{"name": "a"}] * 17, "adapters"),
    ("response_format", {"type": "xml"}, "response_format.type"),
    ("response_format", {"type": "json_schema"}, "response_format.json_schema.schema"),
    ("response_format", {"type": "json_object", "schema": {}}, "response_format.schema"),
    ("guided_json", 5, "guided_json"),
    ("guided_regex", "", "guided_regex"),
    ("guided_choice", [], "guided_choice"),
    ("guided_choice", [""], "guided_choice[0]"),
    ("structured_outputs", {"regexp": "a"}, "structured_outputs.regexp"),
    # Features that would change the answer.
    ("use_beam_search", True, "use_beam_search"),
    ("audio", {"voice": "x"}, "audio"),
    ("modalities", ["text", "audio"], "modalities"),
    ("prediction", {"type": "content", "content": "x"}, "prediction"),
    ("suffix", "end", "suffix"),
    ("functions", [{}], "functions"),
    ("chat_template", "{{ x }}", "chat_template"),
    ("bad_words", ["x"], "bad_words"),
    ("logits_processors", ["x"], "logits_processors"),
    ("fusion", {}, "fusion.method"),
    ("fusion", {"method": "ties"}, "fusion.method"),
    ("fusion", {"method": "sum", "experts": ["demo"] * 65, "weights": 1}, "fusion.experts"),
    ("fusion", {"method": "sum", "experts": [5], "weights": 1}, "fusion.experts[0]"),
    ("fusion", {"method": "proxy", "experts": [{"modle": "a"}]}, "fusion.experts[0].modle"),
    ("fusion", {"method": "proxy", "anchor": {"temperature": 0}}, "fusion.anchor.temperature"),
    ("fusion", {"method": "proxy", "weights": "1"}, "fusion.weights"),
    ("fusion", {"method": "proxy", "weights": []}, "fusion.weights"),
    ("fusion", {"method": "guidance", "negative_prompt": [-1]}, "fusion.negative_prompt"),
    ("fusion", {"method": "dynamic", "range": 0}, "fusion.range"),
    ("fusion", {"method": "dynamic", "range": 17}, "fusion.range"),
    ("fusion", {"method": "sum", "plausible": 1.5}, "fusion.plausible"),
    ("fusion", {"method": "dexperts", "nucleus": 0}, "fusion.nucleus"),
    # Nobody's fields.
    ("temprature", 1, "temprature"),
    ("foo", False, "foo"),
]

CHAT = [
    ("messages", [], "messages"),
    ("messages", "Hi", "messages"),
    ("messages", ["Hi"], "messages[0]"),
    ("messages", [{}], "messages[0].role"),
    ("messages", [USER, {"role": "robot", "content": "x"}], "messages[1].role"),
    ("messages", [{"role": "user"}], "messages[0]"),
    ("messages", [{"role": "user", "content": 5}], "messages[0].content"),
    (
        "messages",
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        "messages[0].content[0].image_url.url",
    ),
    (
        "messages",
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio"}]}],
        "messages[0].content[1]",
    ),
    (
        "messages",
        [USER, {"role": "assistant", "tool_calls": [{"function": {}}]}],
        "messages[1].tool_calls[0].function.name",
    ),
    ("max_tokens", 0, "max_tokens"),
    ("max_tokens", 4000, "max_tokens"),
    ("max_completion_tokens", 0, "max_completion_tokens"),
    ("max_completion_tokens", 4000, "max_completion_tokens"),
    ("logprobs", 5, "logprobs"),
    ("top_logprobs", 3, "top_logprobs"),  # without logprobs
    ("top_logprobs", 21, "top_logprobs"),
    ("tools", {}, "tools"),
    ("tools", [{"type": "retrieval"}], "tools[0].type"),
    ("tools", [{"type": "function", "function": {}}], "tools[0].function.name"),
    ("tools", [{"type": "function", "function": {"name": "a b"}}], "tools[0].function.name"),
    ("tools", [TOOL] * 129, "tools"),
    ("tool_choice", "maybe", "tool_choice"),
    ("tool_choice", "required", "tool_choice"),  # without tools
    (
        "tool_choice",
        {"type": "function", "function": {"name": "g"}},
        "tool_choice.function.name",
    ),
    ("chat_template_kwargs", {"messages": []}, "chat_template_kwargs.messages"),
    ("continue_final_message", True, "continue_final_message"),
    ("add_special_tokens", True, "add_special_tokens"),
    ("echo", True, "echo"),
    ("best_of", 2, "best_of"),
    ("prompt", "Hi", "prompt"),
]

COMPLETIONS = [
    ("prompt", None, "prompt"),
    ("prompt", "", "prompt"),
    ("prompt", [], "prompt"),
    ("prompt", 5, "prompt"),
    ("prompt", {"a": 1}, "prompt"),
    ("prompt", [""], "prompt[0]"),
    ("prompt", ["a", 5], "prompt[1]"),
    ("prompt", [[]], "prompt[0]"),
    ("prompt", [1, "a"], "prompt[1]"),
    ("prompt", [1, -1], "prompt[1]"),
    ("prompt", [1, True], "prompt[1]"),
    ("prompt", [[1], [2, 2.5]], "prompt[1][1]"),
    ("prompt", [1, 10**6], "prompt"),
    ("prompt", [[1], [10**6]], "prompt[1]"),
    ("prompt", ["a"] * 1025, "prompt"),
    ("prompt", [1] * 2048, "prompt"),
    ("prompt", "word " * 4000, "prompt"),
    ("prompt", "x" * 500_000, "prompt"),
    ("max_tokens", 0, "max_tokens"),  # without echo
    ("max_tokens", 4000, "max_tokens"),
    ("logprobs", 21, "logprobs"),
    ("logprobs", -1, "logprobs"),
    ("logprobs", True, "logprobs"),
    ("best_of", 129, "best_of"),
    ("best_of", 0, "best_of"),
    ("messages", [USER], "messages"),
    ("max_completion_tokens", 5, "max_completion_tokens"),
    ("tools", [TOOL], "tools"),
]


def ids(cases):
    return [f"{name}={str(value)[:24]}" for name, value, _ in cases]


def check(answer, param, engine):
    assert answer.status in (400, 422), answer.body
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code", "what", "why", "fix"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param, error
    assert error["message"].startswith(error["what"].rstrip("."))
    assert len(error["message"]) < 1000
    assert engine.requests == []


@pytest.mark.parametrize(("name", "value", "param"), SHARED + CHAT, ids=ids(SHARED + CHAT))
async def test_chat(client, engine, name, value, param):
    check(await client.chat(**{"max_tokens": 8, name: value}), param, engine)


@pytest.mark.parametrize(
    ("name", "value", "param"), SHARED + COMPLETIONS, ids=ids(SHARED + COMPLETIONS)
)
async def test_completions(client, engine, name, value, param):
    body = {"prompt": "Hi", "max_tokens": 8, name: value}
    check(await client.post("/v1/completions", body), param, engine)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 3, "n": 2, "stream": True}, "best_of"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"prompt": [1] * 2045, "max_tokens": 5}, "max_tokens"),
        ({"prompt": [[1]] * 1000, "n": 2}, "n"),
    ],
)
async def test_fields_that_contradict_each_other(client, engine, fields, param):
    check(await client.complete(**fields), param, engine)


@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_tools_and_a_format_contradict_each_other(client, engine, choice):
    answer = await client.chat(tools=[TOOL], tool_choice=choice, guided_regex="a")
    check(answer, "guided_regex", engine)


async def test_a_prompt_that_fills_the_context(client, engine):
    answer = await client.complete([1] * 2048)
    assert answer.json["error"]["code"] == "context_length_exceeded"
    assert "2048" in answer.json["error"]["message"]


async def test_an_unknown_field_names_the_nearest(client):
    error = (await client.chat(temprature=1)).json["error"]
    assert error["fix"] == "Did you mean 'temperature'?"


async def test_an_unknown_model(client, engine):
    answer = await client.chat(model="demoo")
    assert answer.status == 404
    error = answer.json["error"]
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "Did you mean 'demo'?" in error["message"]
    assert engine.requests == []


async def test_an_unknown_adapter(client):
    answer = await client.chat(adapters=[{"name": "nope"}])
    assert (answer.status, answer.json["error"]["param"]) == (404, "adapters[0]")


async def test_unknown_routes_and_methods(client):
    answer = await client.get("/v1/nothing")
    assert (answer.status, answer.json["error"]["code"]) == (404, "route_not_found")
    answer = await client.get("/v1/chat/completions")
    assert (answer.status, answer.json["error"]["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


async def test_neutral_values_of_unserved_fields_pass(client):
    answer = await client.complete(
        max_tokens=1, suffix="", use_beam_search=False, length_penalty=1.0, bad_words=[]
    )
    assert answer.status == 200, answer.body
