"""Kinds are told by the first bytes."""

import pytest
from tests.server.pipeline.documents.ocr.samples import encoded, line, pdf, text

from turret_server.errors import BadRequest, Unprocessable
from turret_server.pipeline.documents.ocr.kinds import kind_of, require_kind


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_pictures(kind):
    assert kind_of(encoded(line(), kind)) == kind


def test_a_pdf_may_have_junk_before_its_head():
    assert kind_of(pdf(text("a"))) == "PDF"
    assert kind_of(b"\r\n" * 100 + pdf(text("a"))) == "PDF"


def test_every_prefix_of_a_signature_is_harmless():
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        data = encoded(line(), kind)
        for length in range(20):
            kind_of(data[:length])


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- x -->\n<SVG/>", "SVG"),
        (b"%!PS-Adobe-3.0", "PostScript"),
        (b"\x00\x00\x00\x18ftypheic", "HEIF"),
        (b"PK\x03\x04abc", "ZIP"),
        (b"\x00\x00\x00\x0cjP  \r\n", "JPEG 2000"),
    ],
)
def test_what_is_known_and_not_read_is_named(data, name):
    with pytest.raises(Unprocessable, match=name):
        require_kind(data)


@pytest.mark.parametrize(("data", "why"), [(b"", "no bytes"), (b"Dear Sir or Madam", "unknown")])
def test_anything_else_is_refused(data, why):
    with pytest.raises(BadRequest, match=why):
        require_kind(data)
