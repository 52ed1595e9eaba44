"""Documents: how they are sent, and what comes back about them."""

from __future__ import annotations

import base64
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from turret_client import (
    Citation,
    Client,
    Finished,
    InvalidAnswer,
    Page,
    Word,
    document,
)
from turret_server.api.schema import responses

CITATION = {
    "start": 0,
    "end": 6,
    "document": 0,
    "page": 1,
    "words": [3],
    "text": "963.60",
    "box": [1.0, 2.0, 3.0, 4.0],
    "unit": "px",
    "score": 1.0,
}
MESSAGE = {
    "role": "assistant",
    "content": "963.60",
    "citations": [CITATION],
    "layout": {"answer": "963.60", "value": 963.6},
}
CITED = Citation(0, 6, 0, 1, (3,), "963.60", (1.0, 2.0, 3.0, 4.0), "px", 1.0)


def test_a_file_its_bytes_an_ocr_result_and_a_url(tmp_path: Path) -> None:
    file = tmp_path / "page.png"
    file.write_bytes(b"\x89PNG")
    sent = {"data": base64.b64encode(b"\x89PNG").decode()}
    for source in (file, str(file), b"\x89PNG"):
        assert document(source) == {"type": "document", "document": sent}
    ocr = {"words": ["Total"], "boxes": [[0, 0, 1, 1]]}
    assert document(ocr)["document"] == {"data": ocr}
    assert document("https://x.test/a.pdf")["document"] == {"url": "https://x.test/a.pdf"}
    with pytest.raises(FileNotFoundError):
        document(tmp_path / "none.png")


def test_a_question_about_documents(script: Any, client: Client) -> None:
    choice = {"index": 0, "message": MESSAGE, "finish_reason": "stop"}
    script.answers({"id": "1", "model": "m", "choices": [choice]})
    answer = client.ask("The total?", {"words": []}, b"x", layout={"cite": True}, max_tokens=5)
    (body,) = script.bodies()
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["document", "document", "text"]
    assert (body["layout"], body["max_tokens"]) == ({"cite": True}, 5)
    assert answer.choices[0].citations == (CITED,)
    assert answer.choices[0].task_answer == {"answer": "963.60", "value": 963.6}


def test_citations_come_with_the_end_of_a_stream(script: Any, events: Any, client: Client) -> None:
    chunk = {"id": "1", "model": "m", "choices": []}
    delta = {"index": 0, "delta": {"role": "assistant", "content": "963.60"}}
    last = {"index": 0, "delta": {**MESSAGE, "content": ""}, "finish_reason": "stop"}
    script.answers(events({**chunk, "choices": [delta]}, {**chunk, "choices": [last]}))
    with client.ask("The total?", b"x", stream=True) as stream:
        finished = [event for event in stream if isinstance(event, Finished)]
        answer = stream.answer()
    assert finished[0].citations == answer.choices[0].citations == (CITED,)
    assert answer.choices[0].task_answer == {"answer": "963.60", "value": 963.6}
    assert answer.text == "963.60"


def test_a_layout(script: Any, client: Client) -> None:
    word = {"text": "Total", "quad": [0, 0, 1, 0, 1, 1, 0, 1], "start": 0, "end": 5}
    page = {"page": 1, "width": 9, "height": 8, "unit": "px", "text": "Total", "num_words": 1}
    script.answers({"object": "layout", "pages": [{**page, "words": [word]}, page]})
    with_words, without = client.layout(b"x", boxes=True)
    assert with_words.words == (Word("Total", (0, 0, 1, 0, 1, 1, 0, 1), 0, 5),)
    assert without == Page(1, "Total", 1, 9, 8, "px")
    assert script.bodies() == [{"document": {"data": "eA=="}, "boxes": True}]
    for pages in (1, [1], [{"page": 1}]):
        script.answers({"pages": pages})
        with pytest.raises(InvalidAnswer):
            client.layout(b"x")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Citation, responses.Citation),
        (Page, responses.LaidOutPage),
        (Word, responses.LaidOutWord),
    ],
)
def test_every_field_of_the_server_is_known(ours: type, theirs: Any) -> None:
    assert {field.name for field in fields(ours)} == theirs.model_fields.keys()
