"""What a file is, by its first bytes: what a client says of it is no evidence."""

from __future__ import annotations

from turret_server.errors import BadRequest, Unprocessable

PDF = "PDF"

_SUPPORTED = "PNG, JPEG, WebP, TIFF, BMP, GIF and PDF can be read."
_PDF_HEAD = 1024  # bytes within which readers look for the signature of a PDF

# Signatures of formats that Pillow or others could open, and that are refused all the same: they
# are programs or fetch things (SVG, PostScript), or need decoders that are not always there.
_REFUSED = (
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"8BPS", "Photoshop"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"PK\x03\x04", "a ZIP or Office document"),
    (b"\x1f\x8b", "gzip"),
)


def kind_of(data: bytes) -> str | None:
    """Return "PDF" or the name that Pillow has for the picture; None for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data.startswith(b"BM") and len(data) > 14:
        return "BMP"
    if b"%PDF-" in data[:_PDF_HEAD]:
        return PDF
    return None


def require_kind(data: bytes) -> str:
    """The same, or an error that names what the data is instead.

    Raises:
        BadRequest: the data is empty or unknown.
        Unprocessable: it is of a kind that is not read.
    """
    if not data:
        raise BadRequest("the document is empty", "it has no bytes", _SUPPORTED)
    if (kind := kind_of(data)) is not None:
        return kind
    if (name := _refused(data)) is not None:
        raise Unprocessable(f"the document is {name}", "this format is not read", _SUPPORTED)
    raise BadRequest(
        "the document is neither a picture nor a PDF", "its first bytes are unknown", _SUPPORTED
    )


def _refused(data: bytes) -> str | None:
    for signature, name in _REFUSED:
        if data.startswith(signature):
            return name
    if data[4:8] == b"ftyp":
        return "HEIF, AVIF or a video"
    head = data[:_PDF_HEAD].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<") and b"<svg" in head:
        return "SVG"
    return None
