"""An invoice as a picture, as OCR results and as PDFs, through OpenAI's client."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import pytest
from openai import BadRequestError
from PIL import Image, ImageDraw, ImageFont
from tests.server.pipeline.documents.ocr import samples

pytestmark = pytest.mark.e2e

WIDTH, HEIGHT = 1240, 900
COLUMNS = (80, 560, 860, 1120)  # the first begins there, the others end
TABLE = (
    ("Item", "Quantity", "Unit price", "Amount"),
    ("Hammer drill", "2", "149.00", "298.00"),
    ("Safety goggles", "10", "8.50", "85.00"),
    ("Workbench", "1", "420.00", "420.00"),
    ("", "", "Subtotal", "803.00"),
    ("", "", "VAT 20%", "160.60"),
    ("", "", "Total", "963.60"),
)
HEAD = (
    (80, 60, "ACME Tools Ltd."),
    (860, 60, "INVOICE"),
    (80, 130, "12 Harbour Street, Bristol"),
    (740, 140, "Invoice No:"),
    (940, 140, "2024-0117"),
    (740, 185, "Date:"),
    (940, 185, "17 March 2024"),
    (80, 290, "Bill to: Nordlicht GmbH, Hamburg"),
)
ANSWERS = {
    "What is the total?": "963.60",
    "What is the invoice number?": "2024-0117",
    "What is the date of the invoice?": "17 March 2024",
}
FONT = ImageFont.load_default(28)


def lines() -> list[tuple[float, float, str]]:
    """Texts and where they begin, in pixels of the picture."""
    found: list[tuple[float, float, str]] = [*HEAD]
    for row, cells in enumerate(TABLE):
        for column, text in enumerate(cells):
            left = COLUMNS[column] - (FONT.getlength(text) if column else 0)
            if text:
                found.append((left, 370 + 60 * row, text))
    return found


def picture() -> bytes:
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    for left, top, text in lines():
        draw.text((left, top), text, font=FONT, fill="black")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def textract() -> dict[str, Any]:
    """What Textract makes of it: lines in no particular order, boxes in shares of the page."""
    blocks: list[dict[str, Any]] = [{"BlockType": "PAGE", "Id": "page", "Page": 1}]
    for at, (left, top, text) in enumerate(reversed(lines())):
        for part, word in enumerate(text.split()):
            before = " ".join(text.split()[:part]) + (" " if part else "")
            box = {
                "Left": (left + FONT.getlength(before)) / WIDTH,
                "Top": top / HEIGHT,
                "Width": FONT.getlength(word) / WIDTH,
                "Height": 28 / HEIGHT,
            }
            block = {"BlockType": "WORD", "Id": f"{at}-{part}", "Text": word, "Page": 1}
            blocks.append({**block, "Confidence": 99.0, "Geometry": {"BoundingBox": box}})
    return {"DocumentMetadata": {"Pages": 1}, "Blocks": blocks}


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def as_picture() -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url("image/png", picture())}}


def as_textract() -> dict[str, Any]:
    return {"type": "document", "document": {"format": "textract", "data": textract()}}


def as_scanned_pdf() -> dict[str, Any]:
    file = io.BytesIO()
    Image.open(io.BytesIO(picture())).save(file, "PDF")
    return as_file(file.getvalue())


def as_pdf() -> dict[str, Any]:
    """With words, as programs print them."""
    scale = 0.48  # points per pixel
    content = b"".join(
        samples.text(word, x=round(left * scale), y=round((HEIGHT - top - 28) * scale), size=13)
        for left, top, word in lines()
    )
    return as_file(samples.pdf(content, box=(0, 0, WIDTH * scale, HEIGHT * scale)))


def as_file(data: bytes) -> dict[str, Any]:
    file_data = data_url("application/pdf", data)
    return {"type": "file", "file": {"filename": "invoice.pdf", "file_data": file_data}}


@pytest.fixture
def ask_about(client: Any, base: str) -> Any:
    """A question about documents; greedy and short."""

    def create(question: str, *parts: Any, **options: Any) -> Any:
        content = [*parts, {"type": "text", "text": question}]
        return client.chat.completions.create(
            model=base,
            messages=[{"role": "user", "content": content}],
            **{"temperature": 0, "max_tokens": 24, **options},
        )

    return create


@pytest.mark.parametrize("form", [as_picture, as_scanned_pdf, as_pdf, as_textract])
async def test_questions_about_an_invoice_are_answered_from_it(ask_about, form):
    part = form()
    for question, words in ANSWERS.items():
        answer = await ask_about(question, part)
        assert words in answer.choices[0].message.content
        assert answer.layout["pages"] == 1


async def test_the_rows_of_the_table_stay_rows(http):
    (page,) = (await http.post("/v1/layout", json={"image_url": as_picture()["image_url"]})).json()[
        "pages"
    ]
    rows = [line.split() for line in page["text"].splitlines()]
    for cells in TABLE:
        assert " ".join(cells).split() in rows


async def test_the_answer_is_found_on_the_page(ask_about):
    options = {"extra_body": {"layout": {"cite": True}}}
    stream = await ask_about("What is the total?", as_picture(), stream=True, **options)
    *_, last = [chunk async for chunk in stream]
    (citation,) = [c for c in last.choices[0].delta.citations if "963.60" in c["text"]]
    left, top, right, bottom = citation["box"]
    assert (left + right) / 2 == pytest.approx(COLUMNS[3] - 45, abs=30)
    assert (top + bottom) / 2 == pytest.approx(370 + 60 * 6 + 16, abs=15)


async def test_fields_are_extracted_in_their_form(ask_about):
    value = {"type": "string", "maxLength": 20}
    fields = {
        "type": "object",
        "properties": {"total": value, "date": value},
        "required": ["total", "date"],
        "additionalProperties": False,
    }
    layout = {"task": "key-values", "fields": fields}
    answer = await ask_about("", as_textract(), extra_body={"layout": layout}, max_tokens=100)
    assert set(answer.choices[0].message.layout["value"]) == {"total", "date"}


async def test_others_go_on_while_documents_are_read_and_refused(ask, ask_about, base):
    story = "Begin a story about a lighthouse."
    alone = await ask(base, story, max_tokens=40)
    bad = as_file(b"%PDF-1.7" + bytes(1_000_000))
    together, *refused = await asyncio.gather(
        ask(base, story, max_tokens=40),
        ask_about("What is it?", bad),
        ask_about("What is it?", {"type": "document", "document": {"data": {"Blocks": 5}}}),
        ask_about("What is it?", as_picture()),
        return_exceptions=True,
    )
    assert together.choices == alone.choices
    assert [type(one) for one in refused[:2]] == [BadRequestError] * 2
    assert refused[2].choices[0].finish_reason
