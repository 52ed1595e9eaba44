"""RapidOCR: the models of PP-OCR, run by onnxruntime on one thread."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rapidocr import RapidOCR
from rapidocr.main import RapidOCRError

from turret_server.pipeline.documents.ocr.line_words import ink_of, inked, split
from turret_server.pipeline.documents.ocr.recognizer import Pixels
from turret_server.pipeline.documents.page import Quad, Word

_MAX_PIXELS = 4_000_000  # that detection works on: A4 at 200 dpi
_SMALL_PX = 736  # shorter side under which a picture is enlarged, at most twice
_MARGIN_PX = 16  # of paper around, or text at the edge is lost
_MAX_RATIO = 100.0  # of a line's width to its height; longer ones are squeezed
_LONG_RATIO = 4.0  # of it, from which on a line tells how the page lies; letters are shorter
_VOTERS = 9  # lines that are asked whether the page is upside down
_JUDGES = 3  # lines that are read both ways if they say so
_DOUBTFUL = 0.7  # confidence of a line under which it is read upside down as well
_LETTER = 2.5  # times the height of lines: a tall box up to this is a single letter,
_LETTER_CONFIDENCE = 0.5  # if one can be read in it
_OUT_OF_MEMORY = re.compile(r"bad_alloc|bad allocation|[Ff]ailed to allocate|[Ii]nsufficient mem")

_PARAMS = {
    "Global.log_level": "critical",
    "Global.return_word_box": True,
    "Global.use_vertical_padding": False,
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    # Pictures come in the right size.
    "Det.limit_type": "max",
    "Det.limit_side_len": 1_000_000,
    "Det.max_candidates": 5_000,
    # On one thread, lines one by one are faster than batches; 96 is the least
    # width at which single letters are read as well as at the 320 of the training.
    "Rec.rec_batch_num": 1,
    "Rec.rec_img_shape": [3, 48, 96],
}


@dataclass(frozen=True, slots=True)
class _Line:
    """A line's picture as it is to be read, and its corners on the page in that sense.

    What is much taller than wide comes turned anticlockwise, to be read from left to right.
    """

    image: Pixels
    quad: NDArray[np.float64]  # [4, 2]
    sideways: bool

    @property
    def length(self) -> int:
        return self.image.shape[1]

    def turned(self, quarters: int) -> _Line:
        """The same, turned anticlockwise by quarters of a circle."""
        image = np.ascontiguousarray(np.rot90(self.image, quarters))
        return _Line(image, np.roll(self.quad, -quarters, axis=0), self.sideways)


@dataclass(frozen=True, slots=True)
class _Reading:
    """What was read in a line."""

    line: _Line
    text: str
    middles: list[float]  # of characters without spaces, in pixels of the line
    confidences: list[float]  # of all characters

    @property
    def confidence(self) -> float:
        return sum(self.confidences) / len(self.confidences) if self.text.strip() else 0.0


class Rapid:
    """Reads words from pictures. Loads its models (32 MB) when it is made."""

    def __init__(self) -> None:
        cv2.setNumThreads(1)
        self._engine = RapidOCR(params=_PARAMS)

    def __call__(self, pixels: Pixels) -> list[Word]:
        """Return the words, line by line from top to bottom."""
        try:
            image, scale = _fit(pixels)
            readings, quarters = self._read(image)
        except Exception as error:  # onnxruntime's are not public; only memory is told apart
            if _OUT_OF_MEMORY.search(str(error)):
                raise MemoryError from error
            raise
        height, width = image.shape[:2]
        words = []
        for number, reading in enumerate(readings):
            for text, quad, confidence in _words(reading):
                points = (_turned_back(quad, quarters, width, height) - _MARGIN_PX) / scale
                words.append(Word(text, _as_quad(points), confidence, number))
        return words

    def _read(self, image: Pixels) -> tuple[list[_Reading], int]:
        """Read the lines of a page, turned by the quarters that make it upright."""
        lines = self._detect(image)
        quarters = self._quarters(lines)
        if quarters:  # text that lies on its side is found less well
            lines = self._detect(np.ascontiguousarray(np.rot90(image, quarters)))
        heights = [line.image.shape[0] for line in lines if not line.sideways]
        letter = _LETTER * float(np.median(heights)) if heights else 0.0
        return [self._best(line, letter) for line in lines], quarters

    def _detect(self, image: Pixels) -> list[_Line]:
        try:
            crops, found = self._engine.detect_and_crop(image, {})
        except RapidOCRError:  # there is no text
            return []
        boxes: Any = found.boxes
        return [_line(crop, box) for crop, box in zip(crops, boxes, strict=True)]

    def _quarters(self, lines: list[_Line]) -> int:
        """By how many quarters of a circle, anticlockwise, the page must be turned."""
        long = [line for line in lines if line.length >= _LONG_RATIO * line.image.shape[0]]
        sideways = sum(line.length if line.sideways else -line.length for line in long) > 0
        voters = [line for line in long if line.sideways is sideways]
        if not voters:
            return 0
        voters.sort(key=lambda line: line.length, reverse=True)
        return sideways + 2 * self._upside_down(voters[:_VOTERS])

    def _upside_down(self, voters: list[_Line]) -> bool:
        _, classes = self._engine.cls_and_rotate([line.image for line in voters])
        votes = [label == "180" for label, _ in classes.cls_res or []]
        if 2 * sum(votes) <= len(votes):
            return False
        # The classifier is quick but errs on short lines. It needs the reader to agree.
        return (
            sum(
                self._recognize(line.turned(2)).confidence - self._recognize(line).confidence
                for line in voters[:_JUDGES]
            )
            > 0
        )

    def _best(self, line: _Line, letter: float) -> _Reading:
        """Read a line in the sense in which it makes most of it."""
        readings = []
        if line.sideways and line.length <= letter:
            readings.append(self._recognize(line.turned(3)))
            if readings[0].confidence >= _LETTER_CONFIDENCE:
                return readings[0]
        readings.append(self._recognize(line))
        if line.sideways or readings[0].confidence < _DOUBTFUL:
            readings.append(self._recognize(line.turned(2)))
        return max(readings, key=lambda reading: reading.confidence)

    def _recognize(self, line: _Line) -> _Reading:
        height, width = line.image.shape[:2]
        image = line.image
        if width > _MAX_RATIO * height:
            image = cv2.resize(image, (int(_MAX_RATIO * height), height))
        result: Any = self._engine.recognize_txt([image])
        text, info = result.txts[0], result.word_results[0]
        columns = [column for word in info.word_cols for column in word]
        if not columns or len(info.confs) != len(text):
            return _Reading(line, "", [], [])
        pixels = width / info.line_txt_len
        middles = [(column + 0.5) * pixels for column in columns]
        return _Reading(line, text, middles, list(info.confs))


def _fit(pixels: Pixels) -> tuple[Pixels, float]:
    """The picture in a size for detection, with a margin, and how much larger it became."""
    height, width = pixels.shape[:2]
    scale = min(max(_SMALL_PX / min(height, width), 1.0), 2.0)
    scale = min(scale, (_MAX_PIXELS / (height * width)) ** 0.5)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    image: NDArray[Any] = pixels
    if size != (width, height):
        image = cv2.resize(
            image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        )
    # Detection rounds sides to multiples of 32; paper on the right and below makes them so.
    below, right = (_MARGIN_PX + -(side + 2 * _MARGIN_PX) % 32 for side in image.shape[:2])
    border = np.concatenate((image[[0, -1]].reshape(-1, 3), image[:, [0, -1]].reshape(-1, 3)))
    image = cv2.copyMakeBorder(
        image,
        _MARGIN_PX,
        below,
        _MARGIN_PX,
        right,
        cv2.BORDER_CONSTANT,
        value=np.median(border, axis=0).tolist(),
    )
    return image, scale


def _line(crop: Pixels, box: NDArray[Any]) -> _Line:
    quad = np.asarray(box, dtype=np.float64)
    tall = np.linalg.norm(quad[0] - quad[3]) > np.linalg.norm(quad[0] - quad[1])
    sideways = bool(tall) and crop.shape[1] > crop.shape[0]
    return _Line(crop, np.roll(quad, -1, axis=0) if sideways else quad, sideways)


def _words(reading: _Reading) -> Iterator[tuple[str, NDArray[np.float64], float]]:
    """The words of a line, with their corners [4, 2] on the page."""
    image = reading.line.image
    height, width = image.shape[:2]
    ink = ink_of(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), dtype=np.uint8))
    rows = np.flatnonzero(inked(ink, axis=1))
    top, bottom = (rows[0] / height, (rows[-1] + 1) / height) if len(rows) else (0.0, 1.0)
    for word in split(reading.text, reading.middles, reading.confidences, inked(ink, axis=0)):
        left, right = word.left / width, word.right / width
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        yield word.text, _on_page(reading.line.quad, corners), word.confidence


def _on_page(quad: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where points of a line, as fractions of its width and height, are on the page."""
    across, down = points[:, :1], points[:, 1:]
    above = quad[0] + across * (quad[1] - quad[0])
    below = quad[3] + across * (quad[2] - quad[3])
    return above + down * (below - above)


def _turned_back(
    points: NDArray[np.float64], quarters: int, width: int, height: int
) -> NDArray[np.float64]:
    """Points of the page as it came, whose width and height these are."""
    x, y = points[:, 0], points[:, 1]
    match quarters:
        case 1:
            x, y = width - y, x
        case 2:
            x, y = width - x, height - y
        case 3:
            x, y = y, height - x
    return np.stack((x, y), axis=1)


def _as_quad(points: NDArray[np.float64]) -> Quad:
    a, b, c, d, e, f, g, h = (float(value) for value in points.ravel())
    return a, b, c, d, e, f, g, h
