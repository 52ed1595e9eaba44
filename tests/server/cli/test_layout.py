"""`turret layout`, which needs no server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from turret_server.cli.main import _typer
from turret_server.errors import BadRequest, TurretError

WORDS = ["Item", "Amount", "Drill", "298.00"]
BOXES = [[10, 10, 50, 20], [210, 10, 270, 20], [10, 25, 60, 35], [210, 25, 270, 35]]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    page = {"words": WORDS, "boxes": BOXES, "width": 300, "height": 100}
    Path("one.json").write_text(json.dumps(page))
    Path("two.json").write_text(json.dumps({"pages": [page, {**page, "words": list("abcd")}]}))
    Path("other.json").write_text('{"some": "thing"}')
    Image.new("RGB", (60, 40), "white").save("blank.pdf", "PDF")


def run(*arguments: str):
    return CliRunner().invoke(_typer, ["layout", *arguments])


def test_the_text_of_one_page_stands_alone():
    result = run("one.json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split() for line in result.stdout.split("\n") if line] == [WORDS[:2], WORDS[2:]]


def test_several_pages_are_told_apart():
    lines = run("two.json", "one.json").stdout.splitlines()
    assert [line for line in lines if line.startswith("---")] == [
        "--- two.json, page 1 ---",
        "--- two.json, page 2 ---",
        "--- one.json, page 1 ---",
    ]


def test_pages_and_modes():
    assert run("two.json", "--page", "2", "--mode", "plain").stdout == "a b c d\n"
    assert "Item    Amount" in run("one.json", "--mode", "latin").stdout


def test_json_has_words_and_their_places():
    (page,) = json.loads(run("one.json", "--json").stdout)
    assert (page["file"], page["page"], page["unit"]) == ("one.json", 1, "px")
    assert [word["text"] for word in page["words"]] == WORDS
    for word in page["words"]:
        assert page["text"][word["start"] : word["end"]] == word["text"]


def test_a_page_can_be_looked_at():
    path = Path(run("one.json", "--show").stdout.strip())
    html = path.read_text(encoding="utf-8")
    assert html.count("<polygon ") == 4
    assert "<title>298.00</title>" in html
    assert '<span data-word="0-3">298.00</span>' in html


def test_a_pdf_is_shown_as_it_looks():
    html = Path(run("blank.pdf", "--ocr", "never", "--show").stdout.strip()).read_text()
    assert "data:image/png;base64," in html


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["other.json"], "'other.json': the format of the OCR result is not recognised"),
        (["one.json", "--format", "textract"], "'one.json': the OCR result cannot be read as"),
        (["one.json", "--page", "2"], "'one.json': the document has no page 2"),
        (["one.json", "--mode", "fancy"], "the mode 'fancy' is not known"),
        (["blank.pdf", "--ocr", "perhaps"], "'blank.pdf': unknown value 'perhaps'"),
    ],
)
def test_what_is_wrong_is_told_with_the_file(arguments: list[str], what: str):
    error = run(*arguments).exception
    assert isinstance(error, TurretError)
    assert isinstance(error, BadRequest)
    assert error.what.startswith(what)


def test_a_missing_file():
    result = run("missing.png")
    assert result.exit_code == 2
    assert "does not exist" in result.output
