"""Tesseract is called as it should be, and its table is read."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.server.pipeline.documents.ocr.samples import line

from turret_server.errors import StartupError, Unprocessable
from turret_server.pipeline.documents.ocr import PicturePool, PictureSettings
from turret_server.pipeline.documents.ocr.tesseract import Tesseract

TABLE = """\
level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext
1\t1\t0\t0\t0\t0\t0\t0\t400\t60\t-1\t
4\t1\t1\t1\t1\t0\t20\t14\t300\t20\t-1\t
5\t1\t1\t1\t1\t1\t20\t14\t100\t20\t96.5\t"Amount
5\t1\t1\t1\t1\t2\t130\t14\t50\t20\t-1\t 
5\t1\t1\t1\t2\t1\t20\t40\t100\t20\t42\tdue
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A stand-in that keeps what it is sent and answers with `TABLE`."""
    path = tmp_path / "tesseract"
    path.write_text(
        f"#!{sys.executable}\nimport sys, pathlib\n"
        "if '--list-langs' in sys.argv: print('List of languages:\\neng\\nosd'); raise SystemExit\n"
        "if 'bad' in sys.argv: raise SystemExit(1)\n"
        f"pathlib.Path({str(tmp_path / 'sent')!r}).write_bytes(sys.stdin.buffer.read())\n"
        f"print({TABLE!r})\n"
    )
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "sent"


def pixels() -> np.ndarray:
    return np.asarray(line())[:, :, ::-1]


def test_the_picture_is_sent_and_the_table_read(program: Path):
    first, second = Tesseract("eng", 30)(pixels())
    assert program.read_bytes() == b"P6 400 60 255\n" + line().tobytes()
    assert (first.text, first.box, first.confidence) == ('"Amount', (20, 14, 120, 34), 0.965)
    assert (first.line, second.line, second.block) == (0, 1, 1)


def test_large_pictures_are_shrunk_and_boxes_are_not(program: Path):
    first, _ = Tesseract("eng", 30)(np.zeros((4000, 3000, 3), dtype=np.uint8))
    assert program.read_bytes().startswith(b"P6 1500 2000 255\n")
    assert first.box == (40, 28, 240, 68)


def test_a_failure_is_told(program):
    with pytest.raises(Unprocessable, match="Tesseract failed"):
        Tesseract("bad", 30)(pixels())


def test_a_pool_wants_the_program_and_its_language(program, monkeypatch):
    PicturePool(PictureSettings(engine="tesseract", tesseract_language="eng"))
    with pytest.raises(StartupError, match="no data for 'deu'"):
        PicturePool(PictureSettings(engine="tesseract", tesseract_language="eng+deu"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StartupError, match="no program `tesseract`"):
        PicturePool(PictureSettings(engine="tesseract"))


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="Tesseract is not installed")
def test_the_real_one():
    words = Tesseract("eng", 30)(pixels())
    assert [word.text for word in words] == ["Amount", "due", "512.40"]
    assert all(word.confidence > 0.8 for word in words)
