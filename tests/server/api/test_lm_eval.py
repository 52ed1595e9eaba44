"""What lm-eval's `local-completions` sends and computes, checked against the fake model itself."""

from __future__ import annotations

import pytest


def lm_eval_score(outputs, tokens, ctxlens):
    """`LocalCompletionsAPI.parse_logprobs` of lm-eval 0.4.13, restated."""
    results = []
    for choice, ctxlen in zip(
        sorted(outputs["choices"], key=lambda one: one["index"]), ctxlens, strict=True
    ):
        assert ctxlen > 0
        logprobs = sum(choice["logprobs"]["token_logprobs"][ctxlen:-1])
        values = choice["logprobs"]["token_logprobs"][ctxlen:-1]
        tops = choice["logprobs"]["top_logprobs"][ctxlen:-1]
        greedy = all(value == max(top.values()) for value, top in zip(values, tops, strict=True))
        results.append((logprobs, greedy))
    return results


def truth(engine, tokens, ctxlen):
    total, greedy = 0.0, True
    for position in range(ctxlen, len(tokens)):
        entry = engine.model.entry(tokens[:position], tokens[position], 1)
        total += entry.logprob
        greedy &= tokens[position] == entry.top[0][0]
    return total, greedy


async def test_scores_equal_the_models_own(client, engine):
    greedy_end = [9, 8, 7]
    for _ in range(4):
        greedy_end.append(next(iter(engine.model.logprobs(greedy_end))))
    prompts = [greedy_end, [9, 8, 7, 100, 101, 102], [*greedy_end[:-1], 3], [1, 2]]
    ctxlens = [3, 3, 3, 1]
    answer = await client.complete(
        prompts,
        model="demo",
        temperature=0,
        max_tokens=1,
        logprobs=1,
        seed=1234,
        echo=True,
    )
    body = answer.json
    for choice, prompt in zip(body["choices"], prompts, strict=True):
        lists = choice["logprobs"]
        assert len(lists["tokens"]) == len(prompt) + 1  # exactly one generated
        assert lists["token_logprobs"][0] is None
        assert lists["top_logprobs"][0] is None
    scores = lm_eval_score(body, prompts, ctxlens)
    for score, prompt, ctxlen in zip(scores, prompts, ctxlens, strict=True):
        expected = truth(engine, prompt, ctxlen)
        assert score[0] == pytest.approx(expected[0], abs=1e-12)
        assert score[1] == expected[1]
    assert [greedy for _, greedy in scores][:2] == [True, False]


async def test_an_end_of_sequence_counts_as_the_generated_token(client, engine, tokenizer):
    eos = tokenizer.eos_token_ids[0]
    engine.script = lambda request: [eos]
    answer = await client.complete([[5, 6, 7]], max_tokens=1, logprobs=1, echo=True)
    lists = answer.json["choices"][0]["logprobs"]
    assert len(lists["token_logprobs"]) == 4
    assert lists["tokens"][-1] == tokenizer.token_text(eos)


async def test_the_tokenizer_routes(client, tokenizer):
    info = (await client.get("/tokenizer_info")).json
    assert info["eos_token"] == tokenizer.eos_token
    assert "bos_token" in info
    assert "chat_template" in info
    body = {"prompt": "Hello world", "add_special_tokens": False}
    tokens = (await client.post("/tokenize", body)).json["tokens"]
    assert tokens == tokenizer.encode("Hello world", add_special_tokens=False)
    text = (await client.post("/detokenize", {"tokens": tokens})).json["prompt"]
    assert text == "Hello world"
