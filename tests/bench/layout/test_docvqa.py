"""ANLS, and asking a server the questions of a set."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from bench.layout.anls import anls, levenshtein, similarity
from bench.layout.docvqa import Server, evaluate

from turret_server.pipeline.documents.readers import read_value


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2), ("same", "same", 0)],
)
def test_levenshtein(a: str, b: str, distance: int) -> None:
    assert levenshtein(a, b) == levenshtein(b, a) == distance


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("Paris", ["paris"], 1.0),
        (" 12 ", ["x", "12"], 1.0),
        ("0.28", ["0.26"], 0.75),
        ("ab", ["ax"], 0.0),  # half of the letters are wrong
        ("", [""], 1.0),
        ("", ["a"], 0.0),
        ("a", [], 0.0),
    ],
)
def test_similarity(answer: str, right: list[str], expected: float) -> None:
    assert similarity(answer, right) == pytest.approx(expected)


def test_anls_is_the_mean() -> None:
    assert anls([("a", ["a"]), ("b", ["z"])]) == 0.5
    assert anls([]) == 0.0


@pytest.fixture
def server() -> Iterator[tuple[str, list[Any]]]:
    """Answers "4.50" to every question that has a readable page; and what it was asked."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            if len(asked) == 2:
                self.send_error(500)
                return
            reply = json.dumps({"choices": [{"message": {"content": "4.50"}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", asked
        http.shutdown()
        thread.join()


def test_a_set_is_asked_and_scored(tmp_path: Path, server: tuple[str, list[Any]]) -> None:
    url, asked = server
    ocr = {
        "recognitionResults": [
            {"lines": [{"boundingBox": [0, 0, 9, 0, 9, 5, 0, 5], "text": "Price 4.50"}]}
        ]
    }
    (tmp_path / "ocr_results").mkdir()
    (tmp_path / "ocr_results" / "doc_3.json").write_text(json.dumps(ocr))
    page = {"ucsf_document_id": "doc", "ucsf_document_page_no": "3"}
    data = [
        {"question": "The price?", "answers": ["4.50"], **page},
        {"question": "Fails?", "answers": ["x"], **page},
        {"question": "No page?", "answers": ["x"], **page, "ucsf_document_page_no": "4"},
        {"question": "No answers?", **page},
    ]
    (tmp_path / "val_v1.0.json").write_text(json.dumps({"data": data}))

    found = evaluate(tmp_path, Server(url, "demo", workers=1), None)

    assert (found["anls"], found["questions"], len(found["failed"])) == (0.5, 2, 1)
    document, question = asked[0]["messages"][0]["content"]
    assert question["text"] == "The price?"
    assert read_value(**_named(document["document"]))[0].words[0].text == "Price 4.50"
    assert asked[0]["layout"] == {"task": "docvqa", "mode": "turret"}


def _named(document: dict[str, Any]) -> dict[str, Any]:
    return {"value": document["data"], "format": document["format"]}


def test_a_folder_without_a_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no question"):
        evaluate(tmp_path, Server("http://localhost", "demo"), None)
