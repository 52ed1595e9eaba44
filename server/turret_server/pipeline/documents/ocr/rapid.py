"""RapidOCR: the models of PP-OCR, run by onnxruntime on one thread."""

from __future__ import annotations

import re
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
_VOTERS = 9  # lines that tell whether a page is upside down
_DOUBTFUL = 0.7  # confidence of a line under which it is also read upside down
_LETTER = 2.5  # times the height of lines: a tall box up to this may be a single upright letter
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
    # On one thread, lines one by one are faster than batches, and need no padding.
    "Rec.rec_batch_num": 1,
    "Rec.rec_img_shape": [3, 48, 32],
}


@dataclass(frozen=True, slots=True)
class _Line:
    """A line's picture as it is to be read, and its corners on the page in that sense."""

    image: Pixels
    quad: NDArray[np.float64]  # [4, 2]
    sideways: bool

    def turned(self, quarters: int) -> _Line:
        """The same, turned by quarters of a circle anticlockwise."""
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
    """Reads words from pictures. Loads its models (32 MB) when it is first called."""

    def __init__(self) -> None:
        cv2.setNumThreads(1)
        self._engine = RapidOCR(params=_PARAMS)

    def __call__(self, pixels: Pixels) -> list[Word]:
        """Return the words, line by line from top to bottom."""
        try:
            image, scale, margin = _fit(pixels)
            readings = self._read(image)
        except Exception as error:
            if _OUT_OF_MEMORY.search(str(error)):
                raise MemoryError from error
            raise
        words = []
        for number, reading in enumerate(readings):
            words += _words(reading, number, scale, margin)
        return words

    def _read(self, image: Pixels) -> list[_Reading]:
        try:
            crops, found = self._engine.detect_and_crop(image, {})
            boxes: Any = found.boxes
        except RapidOCRError:  # there is no text
            return []
        lines = [_line(crop, box) for crop, box in zip(crops, boxes, strict=True)]
        for sideways in (False, True):
            group = [i for i, line in enumerate(lines) if line.sideways is sideways]
            if self._upside_down([lines[i] for i in group]):
                for i in group:
                    lines[i] = lines[i].turned(2)
        readings = [self._recognize(line) for line in lines]
        heights = [line.image.shape[0] for line in lines if not line.sideways]
        letter = _LETTER * float(np.median(heights)) if heights else 0.0
        for i, line in enumerate(lines):
            others = []
            if line.sideways and line.image.shape[1] <= letter:
                others = [line.turned(3)]
            elif readings[i].confidence < _DOUBTFUL:
                others = [line.turned(2)]
            for other in others:
                again = self._recognize(other)
                if again.confidence > readings[i].confidence:
                    readings[i] = again
        return readings

    def _upside_down(self, lines: list[_Line]) -> bool:
        long = [line for line in lines if line.image.shape[1] >= 2 * line.image.shape[0]]
        long.sort(key=lambda line: line.image.shape[1], reverse=True)
        if not long:
            return False
        _, classes = self._engine.cls_and_rotate([line.image for line in long[:_VOTERS]])
        votes = [label == "180" for label, _ in classes.cls_res or []]
        return 2 * sum(votes) > len(votes)

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


def _fit(pixels: Pixels) -> tuple[Pixels, float, int]:
    """The picture in a size for detection, how much larger it became, and the paper around it."""
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
    return image, scale, _MARGIN_PX


def _line(crop: Pixels, box: NDArray[Any]) -> _Line:
    quad = np.asarray(box, dtype=np.float64)
    tall = np.linalg.norm(quad[0] - quad[3]) > np.linalg.norm(quad[0] - quad[1])
    # What is tall was turned anticlockwise to be read from left to right.
    sideways = bool(tall) and crop.shape[1] > crop.shape[0]
    return _Line(crop, np.roll(quad, -1, axis=0) if sideways else quad, sideways)


def _words(reading: _Reading, number: int, scale: float, margin: int) -> list[Word]:
    image = reading.line.image
    height, width = image.shape[:2]
    ink = ink_of(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), dtype=np.uint8))
    rows = np.flatnonzero(inked(ink, axis=1))
    top, bottom = (rows[0] / height, (rows[-1] + 1) / height) if len(rows) else (0.0, 1.0)
    words = []
    for word in split(reading.text, reading.middles, reading.confidences, inked(ink, axis=0)):
        left, right = word.left / width, word.right / width
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        points = (_on_page(reading.line.quad, corners) - margin) / scale
        a, b, c, d, e, f, g, h = (float(value) for value in points.ravel())
        quad: Quad = a, b, c, d, e, f, g, h
        words.append(Word(word.text, quad, word.confidence, number))
    return words


def _on_page(quad: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where points of a line, as fractions of its width and height, are on the page."""
    across, down = points[:, :1], points[:, 1:]
    above = quad[0] + across * (quad[1] - quad[0])
    below = quad[3] + across * (quad[2] - quad[3])
    return above + down * (below - above)
