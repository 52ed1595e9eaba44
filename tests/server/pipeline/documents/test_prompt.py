from __future__ import annotations

import pytest

from turret_server.errors import BadRequest
from turret_server.pipeline.documents.layout import PageText
from turret_server.pipeline.documents.page import Page
from turret_server.pipeline.documents.prompt import (
    Framing,
    Sheet,
    in_order,
    question_of,
    with_pages,
)
from turret_server.pipeline.documents.tasks import TASKS

EMPTY = PageText("", [])


def sheet(text, part=0, *, message=0, document=0, number=1, of=1):
    return Sheet((message, part), document, of, Page([], 1, 1, number), EMPTY, text)


def user(*parts):
    return {"role": "user", "content": list(parts)}


def framed(messages, sheets, places, **framing):
    return [m["content"] for m in with_pages(messages, sheets, Framing(places, **framing))]


def test_a_document_stands_where_its_part_stood():
    assert framed([user("before", {}, "after")], [sheet("text", 1)], {(0, 1)}) == [
        "before\n\nDocument:\ntext\n\nQuestion: after"
    ]
    assert framed([user({})], [sheet("text")], {(0, 0)}) == ["Document:\ntext"]


def test_other_messages_are_left_alone():
    messages = [{"role": "system", "content": "s"}, user({}, "q"), user("only text")]
    sheets = [sheet("text", message=1)]
    texts = framed(messages, sheets, {(1, 0)})
    assert texts == ["s", "Document:\ntext\n\nQuestion: q", ["only text"]]
    assert messages[1] == user({}, "q")


@pytest.mark.parametrize(
    ("sheets", "labels"),
    [
        ([sheet("a")], []),
        ([sheet("a", number=3, of=5)], ["[Page 3]"]),
        ([sheet("a", of=2), sheet("b", number=2, of=2)], ["[Page 1]", "[Page 2]"]),
        ([sheet("a"), sheet("b", 1, document=1)], ["[Document 1]", "[Document 2]"]),
        (
            [sheet("a", number=2, of=2), sheet("b", 1, document=1)],
            ["[Document 1, page 2]", "[Document 2]"],
        ),
    ],
)
def test_pages_in_a_template_are_labelled_where_there_is_a_choice(sheets, labels):
    places = {sheet.place for sheet in sheets}
    message = user(*({} for _ in places), "q")
    (text,) = framed([message], sheets, places, task=TASKS["docvqa"])
    assert [line for line in text.splitlines() if line.startswith("[")] == labels


def test_what_a_task_asks_for_follows_the_question():
    (text,) = framed(
        [user({}, "In euros.")],
        [sheet("text")],
        {(0, 0)},
        task=TASKS["key-values"],
        fields="What are the values of these keys?\n- total",
    )
    assert "Question: In euros.\nWhat are the values of these keys?\n- total\n" in text


def test_the_question_is_what_the_user_said_last():
    messages = [user({}, "first"), {"role": "assistant", "content": "a"}, user("last", "one")]
    assert question_of(messages, {(0, 0)}) == "last\none"
    assert question_of(messages[:2], {(0, 0)}) == "first"
    assert question_of([{"role": "system", "content": "s"}], set()) == ""


def test_documents_change_places_and_pages_stay_together():
    sheets = [
        sheet("apples", 0),
        sheet("the total", 1, document=1, of=2),
        sheet("and more", 1, document=1, number=2, of=2),
        sheet("pears", 2, document=2),
    ]
    assert in_order(sheets, "total?", "given") == sheets
    found = in_order(sheets, "total?", "edges")
    assert [one.text for one in found][:2] == ["the total", "and more"]
    assert [one.place for one in found] == [(0, 0), (0, 0), (0, 1), (0, 2)]
    assert in_order([], "", "edges") == []


def test_a_part_that_is_no_text_is_named():
    with pytest.raises(BadRequest, match=r"messages\[0\]\.content\[1\]"):
        framed([user({}, {"type": "input_audio"})], [], {(0, 0)})
