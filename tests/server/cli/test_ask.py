"""`turret ask` against a server that answers everything with "Four, of course."."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from turret_server.cli.main import _typer
from turret_server.errors import TurretError

PNG = b"\x89PNG\r\n\x1a\n and so on"
PDF = b"%PDF-1.7 and so on"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    Path("scan.png").write_bytes(PNG)
    Path("scan.pdf").write_bytes(PDF)
    Path("ocr.json").write_text('{"words": []}')


def ask(server: Any, *arguments: str):
    return CliRunner().invoke(_typer, ["ask", "--url", server.url, *arguments])


def body_of(server: Any) -> dict[str, Any]:
    (body,) = server.bodies("/v1/chat/completions")
    return body


def test_the_answer_alone_goes_to_stdout(server: Any):
    result = ask(server, "scan.png", "2 + 2?")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Four,\nof course.\n", "")


def test_files_are_sent_as_clients_send_them(server: Any):
    ask(server, "scan.png", "scan.pdf", "ocr.json", "2 + 2?")
    body = body_of(server)
    picture, file, document, text = body["messages"][0]["content"]
    data = base64.b64encode(PNG).decode()
    assert picture == {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{data}"},
    }
    assert base64.b64decode(file["file"]["file_data"].partition(",")[2]) == PDF
    assert json.loads(base64.b64decode(document["document"]["data"])) == {"words": []}
    assert text == {"type": "text", "text": "2 + 2?"}
    assert body["model"] == "base"
    assert body["layout"] == {"mode": "turret", "ocr": "auto"}
    assert body["temperature"] == 0


def test_options_reach_the_request(server: Any):
    options = (
        "--task key-values --field a --field b --page 2 --mode latin --format words --ocr never"
    )
    ask(server, "ocr.json", "", *options.split(), "-m", "sql", "--max-tokens", "9")
    body = body_of(server)
    assert body["layout"] == {
        "mode": "latin",
        "ocr": "never",
        "task": "key-values",
        "fields": ["a", "b"],
        "pages": [2],
        "format": "words",
    }
    assert [part["type"] for part in body["messages"][0]["content"]] == ["document"]
    assert (body["model"], body["max_tokens"]) == ("sql", 9)


def test_citations_name_file_page_and_box(server: Any):
    result = ask(server, "scan.png", "2 + 2?", "-m", "citing", "--cite")
    assert result.stdout.splitlines()[-1] == "Four  scan.png, page 1, box 60, 10, 90.5, 20 px"
    assert body_of(server)["layout"]["cite"] is True
    assert "left out for lack of room: scan.png page 2" in result.stderr


def test_the_pages_are_shown_with_what_was_cited(server: Any):
    result = ask(server, "ocr.json", "2 + 2?", "-m", "citing", "--show")
    html = Path(result.stdout.splitlines()[-1]).read_text(encoding="utf-8")
    assert '<span data-word="0-1" class="cited">Four</span>' in html
    (asked,) = server.bodies("/v1/layout")
    assert asked["boxes"] is True
    assert asked["document"] == body_of(server)["messages"][0]["content"][0]["document"]


def test_a_refusal_keeps_its_parts(server: Any):
    error = ask(server, "scan.png", "2 + 2?", "-m", "busy").exception
    assert isinstance(error, TurretError)
    assert error.what == "the server is overloaded"
