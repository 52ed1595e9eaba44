"""Tesseract, the program, where it is installed."""

from __future__ import annotations

import csv
import math
import os
import subprocess

import numpy as np
from PIL import Image

from turret_server.errors import StartupError, Unprocessable
from turret_server.pipeline.documents.ocr.recognizer import Pixels
from turret_server.pipeline.documents.page import Word, upright

_PROGRAM = "tesseract"
_WORD_LEVEL = "5"
_MAX_PIXELS = 9_000_000  # A4 at 300 dpi, which it reads best; larger pictures are shrunk
_START_TIMEOUT_S = 30.0


class Tesseract:
    """Reads words from pictures by running `tesseract`, on one thread.

    Args:
        language: of its data, such as "eng+deu".
        timeout_s: after which it is ended.
    """

    def __init__(self, language: str, timeout_s: float) -> None:
        self._command = [_PROGRAM, "stdin", "stdout", "-l", language, "--psm", "3", "tsv"]
        self._timeout_s = timeout_s

    def __call__(self, pixels: Pixels) -> list[Word]:
        """Return the words in the order in which Tesseract reads them.

        Raises:
            Unprocessable: it fails.
        """
        shrunk = math.ceil(math.sqrt(pixels.shape[0] * pixels.shape[1] / _MAX_PIXELS))
        if shrunk > 1:
            pixels = np.asarray(Image.fromarray(pixels).reduce(shrunk))
        height, width = pixels.shape[:2]
        portable = b"P6 %d %d 255\n" % (width, height) + pixels[:, :, ::-1].tobytes()
        run = subprocess.run(
            self._command,
            input=portable,
            capture_output=True,
            timeout=self._timeout_s,
            check=False,
            env={**os.environ, "OMP_THREAD_LIMIT": "1"},
        )
        if run.returncode != 0:
            raise Unprocessable("the picture could not be read", "Tesseract failed on it")
        return _words(run.stdout.decode("utf-8", "replace"), max(shrunk, 1))


def require(language: str) -> None:
    """Check that Tesseract can read a language.

    Raises:
        StartupError: it is not installed, or lacks the data.
    """
    try:
        run = subprocess.run(
            [_PROGRAM, "--list-langs"], capture_output=True, timeout=_START_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartupError(
            "Tesseract cannot read documents",
            "there is no program `tesseract` that runs",
            "Install it, or choose the engine rapidocr.",
        ) from error
    known = run.stdout.decode("utf-8", "replace").split("\n")[1:]
    missing = [name for name in language.split("+") if name not in known]
    if missing:
        raise StartupError(
            "Tesseract cannot read documents",
            f"it has no data for {' and '.join(map(repr, missing))}",
            "Install it, or set another language.",
        )


def _words(table: str, scale: int) -> list[Word]:
    words: list[Word] = []
    numbers: dict[tuple[str, ...], int] = {}
    for row in csv.DictReader(table.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE):
        text = (row["text"] or "").strip()
        if row["level"] != _WORD_LEVEL or not text:
            continue
        line = row["block_num"], row["par_num"], row["line_num"]
        left, top, width, height = (
            float(row[name]) * scale for name in ("left", "top", "width", "height")
        )
        words.append(
            Word(
                text,
                upright(left, top, left + width, top + height),
                min(max(float(row["conf"]) / 100, 0.0), 1.0),
                numbers.setdefault(line, len(numbers)),
                int(row["block_num"]),
            )
        )
    return words
