"""Decodes pictures. Only the decoder of the kind that the first bytes tell is ever tried."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from turret_server.errors import BadRequest, PayloadTooLarge, TurretError
from turret_server.pipeline.documents.ocr.recognizer import Pixels, Recognizer
from turret_server.pipeline.documents.ocr.settings import PictureSettings
from turret_server.pipeline.documents.page import Page

T = TypeVar("T")

_PAGED = "TIFF"  # other kinds have one page; of what is animated the first frame is read


class Picture:
    """A picture, or the pages of a TIFF.

    Args:
        data: of the file.
        kind: as Pillow calls it.
        recognize: reads text.
        settings: limits.

    Raises:
        BadRequest: it is damaged.
        PayloadTooLarge: it has too many pixels.
    """

    def __init__(
        self, data: bytes, kind: str, recognize: Recognizer, settings: PictureSettings
    ) -> None:
        # Pillow refuses pictures above twice its own limit when it opens them, and so do we above
        # ours; this one holds for what decoders do further down.
        Image.MAX_IMAGE_PIXELS = settings.max_pixels
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        self._kind = kind
        self._recognize = recognize
        self._max_pixels = settings.max_pixels
        self._image = self._try(lambda: Image.open(io.BytesIO(data), formats=[kind]))
        self._check_size()
        image = self._image
        self.pages = self._try(lambda: int(getattr(image, "n_frames", 1))) if kind == _PAGED else 1

    def read(self, number: int) -> Page:
        """Recognise a page."""
        if self._kind == _PAGED:
            self._try(lambda: self._image.seek(number - 1))
            self._check_size()
        pixels = self._try(lambda: decode(self._image))
        height, width = pixels.shape[:2]
        return Page(self._recognize(pixels), float(width), float(height), number, "px")

    def close(self) -> None:
        """Free it."""
        self._image.close()

    def _check_size(self) -> None:
        width, height = self._image.size
        if width * height > self._max_pixels:
            raise PayloadTooLarge(
                f"the picture has {width} x {height} pixels",
                f"at most {self._max_pixels} are read",
                "Send it smaller; text is read well at 150 to 200 dots per inch.",
            )

    def _try(self, step: Callable[[], T]) -> T:
        try:
            return step()
        except (TurretError, MemoryError):
            raise
        except Image.DecompressionBombError:
            raise PayloadTooLarge(
                "the picture has too many pixels", f"at most {self._max_pixels} are read"
            ) from None
        except Exception:  # decoders raise whatever they meet, with texts that help nobody
            raise BadRequest(
                f"the {self._kind} picture cannot be decoded",
                "it is damaged or cut off",
                "Save it anew, and send all of its bytes.",
            ) from None


def decode(image: Image.Image) -> Pixels:
    """Return the pixels as a viewer shows them: turned as EXIF says, on white, in 8 bits.

    Args:
        image: opened; of any mode.

    Returns:
        [height, width, 3], blue, green, red.
    """
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        image = white
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])


def _to_8_bits(image: Image.Image) -> Image.Image:
    """From 16 bits, or from numbers of an unknown range, which is stretched."""
    values = np.asarray(image).astype(np.float32)
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 65535 and high > 255 and image.mode != "F":
        low, high = 0.0, 65535.0
    scaled = (values - low) * (255.0 / max(high - low, 1e-6))
    return Image.fromarray(scaled.astype(np.uint8))
