"""Text completions through OpenAI's client: token ids, scoring, seeds."""

from __future__ import annotations

import asyncio

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from turret_kernels import native

pytestmark = pytest.mark.e2e

CONTEXT = "The quick brown fox jumps over the"
ENDINGS = [" lazy dog.", " moon and the stars.", " tax declaration of 1974."]


async def test_token_ids_are_a_prompt(client, base, tokenizer):
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in (CONTEXT, "One, two,")]
    options = {"model": base, "temperature": 0, "max_tokens": 6}
    texts = [
        (await client.completions.create(prompt=prompt, **options)).choices[0].text
        for prompt in (CONTEXT, "One, two,")
    ]
    both = await client.completions.create(prompt=ids, **options)
    assert [choice.text for choice in both.choices] == texts
    assert both.usage.prompt_tokens == sum(map(len, ids))


async def test_a_token_that_does_not_exist_is_refused(client, base):
    from openai import BadRequestError

    with pytest.raises(BadRequestError, match="49152") as caught:
        await client.completions.create(model=base, prompt=[5, 49152])
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("model", ["base", "r16-rslora"])
async def test_scores_are_those_of_transformers(
    client, base, tokenizer, demo_folder, adapters, model
):
    """Summed log-probabilities of endings, asked for and added up as lm-eval does.

    Truth is computed in float32; bfloat16 has eight bits, which costs a token of this model 0.03
    on average (transformers in bfloat16 as much): 0.15 per token is five times that.
    """
    context = tokenizer.encode(CONTEXT, add_special_tokens=False)
    prompts = [context + tokenizer.encode(text, add_special_tokens=False) for text in ENDINGS]
    answer = await client.completions.create(
        model=base if model == "base" else model,
        prompt=prompts,
        temperature=0,
        max_tokens=1,
        logprobs=1,
        echo=True,
        seed=1234,
    )
    scores, greedy = [], []
    for choice in sorted(answer.choices, key=lambda choice: choice.index):
        logprobs = choice.logprobs
        scores.append(sum(logprobs.token_logprobs[len(context) : -1]))
        tops = logprobs.top_logprobs[len(context) : -1]
        values = logprobs.token_logprobs[len(context) : -1]
        greedy.append(all(v == max(t.values()) for v, t in zip(values, tops, strict=True)))

    reference = AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32).eval()
    if model != "base":
        reference = PeftModel.from_pretrained(reference, str(adapters[model]))
    for prompt, score, is_greedy in zip(prompts, scores, greedy, strict=True):
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt])).logits[0, len(context) - 1 : -1]
        ending = torch.tensor(prompt[len(context) :])
        expected = logits.log_softmax(-1).gather(1, ending[:, None]).sum().item()
        assert score == pytest.approx(expected, abs=0.15 * len(ending))
        assert is_greedy == bool((logits.argmax(-1) == ending).all())
    assert scores[0] == max(scores)


async def test_a_seed_gives_the_same_answer_alone_and_in_a_busy_batch(client, base, adapters):
    """Identical tokens; with the native kernels, which are invariant, every bit of logprobs too."""

    def draw(model, seed):
        return client.completions.create(
            model=model, prompt=CONTEXT, max_tokens=12, temperature=1.0, seed=seed, logprobs=2
        )

    probes = [(model, seed) for model in (base, "r8", "r32-attention") for seed in (1, 2)]
    alone = [(await draw(*probe)).choices[0] for probe in probes]
    assert len({choice.text for choice in alone}) == len(probes)

    streams = [
        await client.completions.create(
            model=model,
            prompt=f"Row {i}: {CONTEXT}",
            max_tokens=2000,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        for i, model in enumerate([*adapters, base])
    ]
    arrived = [0] * len(streams)

    async def read(i):
        async for _ in streams[i]:
            arrived[i] += 1

    readers = [asyncio.create_task(read(i)) for i in range(len(streams))]
    busy = await asyncio.gather(*(draw(*probe) for probe in probes))
    assert all(arrived)
    assert not any(reader.done() for reader in readers)
    for reader, stream in zip(readers, streams, strict=True):
        reader.cancel()
        await stream.close()
    assert [answer.choices[0].text for answer in busy] == [choice.text for choice in alone]
    if native.lib is not None:
        assert [answer.choices[0] for answer in busy] == alone
