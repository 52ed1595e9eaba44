"""Tesseract, the program, where it is installed."""

from __future__ import annotations

import csv
import os
import subprocess

from turret_server.errors import Unprocessable
from turret_server.pipeline.documents.ocr.recognizer import Pixels
from turret_server.pipeline.documents.page import Word, upright

_WORD_LEVEL = "5"


class Tesseract:
    """Reads words from pictures by running `tesseract`, on one thread.

    Args:
        language: of its data, such as "eng+deu".
        timeout_s: after which it is ended.
    """

    def __init__(self, language: str, timeout_s: float) -> None:
        self._command = ["tesseract", "stdin", "stdout", "-l", language, "--psm", "3", "tsv"]
        self._timeout_s = timeout_s

    def __call__(self, pixels: Pixels) -> list[Word]:
        """Return the words in the order in which Tesseract reads them.

        Raises:
            Unprocessable: it fails, for one because it lacks the language.
        """
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
            raise Unprocessable(
                "the picture could not be read",
                "Tesseract failed on it, or has no data for the language of the server's setting",
            )
        return _words(run.stdout.decode("utf-8", "replace"))


def _words(table: str) -> list[Word]:
    words: list[Word] = []
    numbers: dict[tuple[str, ...], int] = {}
    for row in csv.DictReader(table.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE):
        text = (row["text"] or "").strip()
        if row["level"] != _WORD_LEVEL or not text:
            continue
        line = row["block_num"], row["par_num"], row["line_num"]
        left, top = float(row["left"]), float(row["top"])
        words.append(
            Word(
                text,
                upright(left, top, left + float(row["width"]), top + float(row["height"])),
                min(max(float(row["conf"]) / 100, 0.0), 1.0),
                numbers.setdefault(line, len(numbers)),
                int(row["block_num"]),
            )
        )
    return words
