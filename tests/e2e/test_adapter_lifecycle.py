"""Adapters come, go and change while others are being answered."""

from __future__ import annotations

import asyncio

import pytest
from openai import NotFoundError

pytestmark = pytest.mark.e2e

STORY = "Begin a story about a lighthouse and the people who lived in it, one winter long ago."


@pytest.fixture
async def new_lora(http, adapters, save_lora, tmp_path_factory):
    """Write a random adapter where the server may read; what was loaded under its name goes."""
    root, made = next(iter(adapters.values())).parent, []

    def write(name, seed):
        path = root / f"{name}-{seed}-{tmp_path_factory.mktemp('run').name}"
        made.append(name)
        return save_lora(path, seed)

    yield write
    for name in set(made):
        await http.delete(f"/v1/adapters/{name}")


async def load(http, name, path):
    response = await http.put(f"/v1/adapters/{name}", json={"path": str(path)})
    assert response.status_code in (200, 201), response.text
    return response.json()


async def text_of(answer):
    return (await answer).choices[0].message.content


async def read(stream, first=None):
    """The text of a stream; `first` is set with its first piece."""
    text = ""
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        if first is not None:
            first.set()
    return text


async def test_an_adapter_is_served_from_its_load_to_its_unload(ask, http, client, new_lora):
    path = new_lora("visitor", 100)
    with pytest.raises(NotFoundError):
        await ask("visitor", STORY)
    body = {"lora_name": "visitor", "lora_path": str(path)}
    assert (await http.post("/v1/load_lora_adapter", json=body)).status_code == 200
    assert "visitor" in [model.id async for model in client.models.list()]
    assert (await ask("visitor", STORY)).model == "visitor"
    # Loading does not replace unless it is asked to.
    assert (await http.post("/v1/load_lora_adapter", json=body)).status_code == 400

    body = {"lora_name": "visitor"}
    assert (await http.post("/v1/unload_lora_adapter", json=body)).status_code == 200
    assert "visitor" not in [model.id async for model in client.models.list()]
    with pytest.raises(NotFoundError):
        await ask("visitor", STORY)
    assert (await http.post("/v1/unload_lora_adapter", json=body)).status_code == 404


async def test_a_load_does_not_disturb_streams(ask, http, base, new_lora):
    models, options = [base, "r8", "r32"], {"max_tokens": 48, "extra_body": {"ignore_eos": True}}
    alone = [await text_of(ask(model, STORY, **options)) for model in models]
    path = new_lora("newcomer", 101)
    firsts = [asyncio.Event() for _ in models]
    streams = [await ask(model, STORY, stream=True, **options) for model in models]
    readers = [
        asyncio.create_task(read(stream, first))
        for stream, first in zip(streams, firsts, strict=True)
    ]
    for first in firsts:
        await first.wait()
    await load(http, "newcomer", path)
    assert await text_of(ask("newcomer", STORY, max_tokens=4))
    assert await asyncio.gather(*readers) == alone


async def test_an_unload_lets_streams_finish(ask, http, server, new_lora, wait_until):
    cards = (await http.get("/v1/adapters")).json()["data"]
    resident = len({card["digest"] for card in cards})

    def others_are_left():  # figures come a few times a second
        return server.metrics()["turret_adapters_resident"] == resident

    wait_until(others_are_left, 10, "what earlier tests loaded leaves the device")
    await load(http, "leaving", new_lora("leaving", 102))
    options = {"max_tokens": 64, "extra_body": {"ignore_eos": True}}
    expected = await text_of(ask("leaving", STORY, **options))
    first = asyncio.Event()
    reader = asyncio.create_task(read(await ask("leaving", STORY, stream=True, **options), first))
    await first.wait()
    assert (await http.delete("/v1/adapters/leaving")).status_code == 200
    with pytest.raises(NotFoundError):
        await ask("leaving", STORY)
    assert not reader.done()
    assert await reader == expected
    wait_until(others_are_left, 10, "it leaves the device")


async def test_a_replacement_never_reads_the_cache_of_what_it_replaced(ask, http, new_lora):
    old, new = new_lora("twin", 103), new_lora("twin", 104)

    async def answer(model):
        found = await ask(model, STORY)
        return found.choices[0].message.content, found.usage.prompt_tokens_details.cached_tokens

    await load(http, "twin", old)
    first, _ = await answer("twin")
    again, cached = await answer("twin")
    assert again == first
    assert cached >= 32

    assert (await load(http, "twin", new))["path"] == str(new)
    replaced, cached = await answer("twin")
    assert cached == 0
    assert replaced != first

    await load(http, "twin", old)
    assert (await answer("twin"))[0] == first


async def test_a_replacement_is_atomic(ask, http, new_lora):
    """Every answer is the old or the new one, and none is old once the replacement is told."""
    old, new = new_lora("moving", 105), new_lora("moving", 106)
    await load(http, "moving", new)
    new_text = await text_of(ask("moving", STORY))
    await load(http, "moving", old)
    old_text = await text_of(ask("moving", STORY))
    assert old_text != new_text

    long = {"max_tokens": 64, "extra_body": {"ignore_eos": True}}
    old_long = await text_of(ask("moving", STORY, **long))
    first = asyncio.Event()
    stream = asyncio.create_task(read(await ask("moving", STORY, stream=True, **long), first))
    await first.wait()

    replaced = asyncio.Event()
    answers = []  # (begun after the replacement was told, text)

    async def keep_asking():
        for _ in range(50):
            told = replaced.is_set()
            answers.append((told, await text_of(ask("moving", STORY))))
            if told:
                return

    workers = [asyncio.create_task(keep_asking()) for _ in range(3)]
    await load(http, "moving", new)
    replaced.set()
    await asyncio.gather(*workers)
    assert await stream == old_long
    assert {text for _, text in answers} <= {old_text, new_text}
    after = [text for told, text in answers if told]
    assert after == [new_text] * len(workers)
