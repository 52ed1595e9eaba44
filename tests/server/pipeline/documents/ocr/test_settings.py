"""Settings have ranges."""

import math

import pytest

from turret_server.errors import StartupError
from turret_server.pipeline.documents.ocr import PictureSettings


def test_defaults_are_within():
    PictureSettings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workers", 0),
        ("max_pixels", 0),
        ("dpi", 10_000),
        ("min_confidence", 1.5),
        ("page_timeout_s", 0.0),
        ("document_timeout_s", math.nan),
        ("memory_mib", 1),
    ],
)
def test_out_of_range(name, value):
    with pytest.raises(StartupError, match=name):
        PictureSettings(**{name: value})
