"""What recognises text in a picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from turret_server.pipeline.documents.ocr.settings import PictureSettings
from turret_server.pipeline.documents.page import Word

Pixels: TypeAlias = NDArray[np.uint8]  # [height, width, 3], blue, green, red

# Words in the order of the engine's lines, in pixels of the picture.
Recognizer: TypeAlias = Callable[[Pixels], list[Word]]


def recognizer(settings: PictureSettings) -> Recognizer:
    """Return the engine of the settings. It loads its models when it is first called."""
    engine: Any = None

    def recognize(pixels: Pixels) -> list[Word]:
        nonlocal engine
        if engine is None:
            engine = _load(settings)
        words = engine(pixels)
        least = settings.min_confidence
        return [word for word in words if word.confidence is None or word.confidence >= least]

    return recognize


def _load(settings: PictureSettings) -> Recognizer:
    if settings.engine == "tesseract":
        from turret_server.pipeline.documents.ocr.tesseract import Tesseract

        return Tesseract(settings.tesseract_language, settings.page_timeout_s)
    from turret_server.pipeline.documents.ocr.rapid import Rapid

    return Rapid()
