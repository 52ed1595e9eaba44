"""Fused requests with documents: which members see them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.server.api.documents.conftest import QUESTION, ROWS, TEXT, document, page_of

from turret_server.engine.messages import AuxiliaryInfo
from turret_server.pipeline.auxiliary import AuxiliaryTokens
from turret_server.pipeline.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def _answer(engine):
    engine.text("963.60")


@pytest.fixture
def prompts(engine, tokenizer):
    """Of the request and its further members, as the models last saw them."""

    def prompts(at: int = -1) -> list[str]:
        request = engine.requests[at]
        ids = [request.prompt, *(member.prompt for member in request.fusion.members)]
        return [tokenizer.decode(prompt, skip_special_tokens=False) for prompt in ids]

    return prompts


WORDS = ("Apple", "Berry")  # of two pages


def guided(**anchor: Any) -> dict[str, Any]:
    return {"method": "guidance", "anchor": anchor}


async def test_a_member_may_go_without_the_documents(ask, prompts):
    """Context-aware decoding."""
    assert (await ask(document(), fusion=guided(documents=False))).status == 200
    own, other = prompts()
    assert f"Document:\n{TEXT}\n\nQuestion: What is the total?" in own
    assert other == own.replace(f"Document:\n{TEXT}\n\n", "")


async def test_a_member_may_have_another_system_message_beside_them(ask, prompts):
    await ask(document(), fusion=guided(system="Answer in Latin."))
    own, other = prompts()
    assert "Answer in Latin." in other
    assert all(f"Document:\n{TEXT}" in prompt for prompt in (own, other))
    await ask(document(), fusion=guided(system="Answer in Latin.", documents=False))
    assert prompts()[1] == other.replace(f"Document:\n{TEXT}\n\n", "")


async def test_what_a_member_says_itself_holds_none(ask, prompts):
    for anchor in ({"prompt": "Hi"}, {"messages": [{"role": "user", "content": "Hi"}]}):
        await ask(document(), fusion=guided(**anchor))
        own, other = prompts()
        assert TEXT in own
        assert "Hi<|im_end|>" in other
        assert TEXT not in other


async def test_templates_of_tasks_are_empty_without_them(ask, prompts):
    await ask(document(), fusion=guided(documents=False), layout={"task": "docvqa"})
    own, other = prompts()
    assert TEXT in own
    assert TEXT not in other
    assert "What is the total?" in other


async def test_every_page_has_its_members(ask, prompts, engine):
    pages = {"pages": [page_of([[word]], n) for n, word in enumerate(WORDS, 1)]}
    layout = {"task": "mp-docvqa-by-page"}
    answer = await ask(document(pages), fusion=guided(system="Be brief."), layout=layout)
    assert answer.status == 200, answer.body
    assert len(engine.requests) == 2
    for at, word in enumerate(WORDS):
        own, other = prompts(at)
        assert ("Be brief." in own, "Be brief." in other) == (False, True)
        assert all(word in prompt for prompt in (own, other))


async def test_without_documents_there_is_nothing_to_leave_out(client, engine):
    assert (await client.chat("Hi", fusion=guided(documents=False))).status == 200
    assert engine.requests[-1].fusion.members == ()


@pytest.fixture
def helped(engine, tokenizer, make_client):
    """A server with an auxiliary whose template is wordy and whose context is short."""
    small = Tokenizer.load(tokenizer.path.parent)
    head = "One two three four five six seven eight nine ten eleven twelve. "
    small.chat_template = head + "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    engine.set_ready(auxiliaries={"small": AuxiliaryInfo(max_model_len=256, kv_blocks=60)})
    return make_client(auxiliaries={"small": AuxiliaryTokens(small)})


async def test_auxiliaries_see_them_in_templates_of_their_own(helped, prompts):
    body = {"method": "contrastive", "anchor": "small"}
    messages = [{"role": "user", "content": [document(), QUESTION]}]
    answer = await helped.post("/v1/chat/completions", {"messages": messages, "fusion": body})
    assert answer.status == 200, answer.body
    assert prompts()[1].endswith(f"<user>Document:\n{TEXT}\n\nQuestion: What is the total?")


async def test_documents_are_cut_to_what_every_member_holds(helped, engine):
    rows = [[f"item {i}", str(i)] for i in range(200)]
    messages = [{"role": "user", "content": [document(page_of([*ROWS, *rows])), QUESTION]}]
    body = {"messages": messages, "max_tokens": 20}
    for fusion, most in (
        ({"method": "contrastive", "anchor": "small"}, 236),
        ({"method": "contrastive", "anchor": {"model": "small", "documents": False}}, 2028),
    ):
        answer = await helped.post("/v1/chat/completions", {**body, "fusion": fusion})
        assert answer.status == 200, answer.body
        request = engine.requests[-1]
        longest = max(len(request.prompt), len(request.fusion.members[0].prompt))
        assert 0.5 * most < longest <= most


async def test_what_is_wrong_is_said_before_documents_are_read(ask, engine, client):
    """The document could not be read at all."""
    for anchor, param in (
        ({"prompt": [1, 2]}, "fusion.anchor.prompt"),
        ({"documents": 1}, "fusion.anchor.documents"),
        ({"messages": [{"role": "user", "content": "x " * 300_000}]}, "fusion.anchor"),
    ):
        answer = await ask(document("no document"), fusion=guided(**anchor))
        assert (answer.status, answer.json["error"]["param"]) == (400, param)
    answer = await client.complete([1], max_tokens=1, fusion=guided(documents=False))
    assert (answer.status, answer.json["error"]["param"]) == (400, "fusion.anchor.documents")
    assert engine.requests == []
