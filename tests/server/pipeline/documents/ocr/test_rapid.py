"""RapidOCR reads pages as they lie, and says where each word stands."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from tests.server.pipeline.documents.ocr.samples import COLUMNS, INVOICE, PITCH, invoice, line

from turret_server.pipeline.documents.ocr.rapid import Rapid
from turret_server.pipeline.documents.page import Word

CELLS = ["INVOICE 2024-0117", *(cell for row in INVOICE for cell in row if cell)]


@pytest.fixture(scope="module")
def rapid() -> Rapid:
    return Rapid()


def pixels(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])


def lines(words: list[Word]) -> list[str]:
    found: dict[int, list[str]] = {}
    for word in words:
        found.setdefault(word.line, []).append(word.text)
    return [" ".join(texts) for texts in found.values()]


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_turned_pages_are_read_upright_and_their_quads_turn_along(rapid, quarters):
    image = invoice()
    words = rapid(pixels(image.rotate(90 * quarters, expand=True)))
    assert lines(words) == CELLS
    (word,) = (word for word in words if word.text == "Description")
    width, height = image.size
    expected = np.array([(62, 135), (190, 135), (190, 160), (62, 160)], dtype=float)
    for _ in range(quarters):
        expected = np.stack((expected[:, 1], width - expected[:, 0]), axis=1)
        width, height = height, width
    assert np.abs(np.array(word.quad).reshape(4, 2) - expected).max() < 10


def test_a_skewed_page(rapid):
    words = rapid(pixels(invoice().rotate(4, expand=True, fillcolor="white")))
    assert len(set(CELLS) & set(lines(words))) >= len(CELLS) - 2
    (word,) = (word for word in words if word.text == "2024-0117")
    corners = np.array(word.quad).reshape(4, 2)
    across = corners[1] - corners[0]
    assert np.degrees(np.arctan2(-across[1], across[0])) == pytest.approx(4, abs=1)


def test_words_stand_where_they_were_drawn(rapid):
    font = ImageFont.load_default(26)
    words = rapid(pixels(invoice()))
    for i, row in enumerate(INVOICE):
        for x, cell in zip(COLUMNS, row, strict=True):
            for text in cell.split():
                at = x + font.getlength(cell[: cell.index(text)])
                left, top, right, bottom = font.getbbox(text)
                y = 130 + i * PITCH
                near = [word for word in words if word.text == text]
                drawn = np.array([at + left, y + top, at + right, y + bottom])
                # Above and below, a word's box is that of its line.
                off = min((np.abs(np.array(word.box) - drawn) for word in near), key=np.sum)
                assert off[0::2].max() <= 5, text
                assert off[1::2].max() <= 9, text


def test_single_characters_are_no_turned_words(rapid):
    image = Image.new("RGB", (700, 400), "white")
    draw = ImageDraw.Draw(image)
    for i in range(10):
        draw.text((60 + 60 * i, 60), str(i), font=ImageFont.load_default(26), fill="black")
        draw.text((60 + 60 * i, 160), str(9 - i), font=ImageFont.load_default(40), fill="black")
    assert "".join(lines(rapid(pixels(image)))) == "01234567899876543210"


def test_notes_in_the_margin_are_read_both_ways(rapid):
    page = Image.new("RGB", (1100, 620), "white")
    page.paste(invoice(), (70, 70))
    for text, degrees, at in (("Reads upwards", 90, (10, 200)), ("Reads down", 270, (1040, 200))):
        page.paste(line(text, (260, 56)).rotate(degrees, expand=True), at)
    words = rapid(pixels(page))
    assert set(lines(words)) == {*CELLS, "Reads upwards", "Reads down"}
    up = next(word for word in words if word.text == "upwards").quad
    down = next(word for word in words if word.text == "down").quad
    assert up[3] < up[1] - 50  # the top right corner as it is read is above the top left
    assert down[3] > down[1] + 50


def test_light_on_dark(rapid):
    image = Image.new("RGB", (500, 120), (20, 24, 30))
    draw = ImageDraw.Draw(image)
    draw.text((3, 3), "Status: 42 units", font=ImageFont.load_default(22), fill=(220, 220, 220))
    assert lines(rapid(pixels(image))) == ["Status: 42 units"]


@pytest.mark.parametrize("size", [(1, 1), (5000, 2), (2, 5000), (33, 31), (800, 600)])
def test_empty_pictures_of_any_shape(rapid, size):
    assert rapid(pixels(Image.new("L", size, 255))) == []


def test_running_out_of_memory_is_told_as_such(rapid, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("Exception during initialization: std::bad_alloc")

    monkeypatch.setattr(rapid._engine, "detect_and_crop", fail)
    with pytest.raises(MemoryError):
        rapid(pixels(line()))
