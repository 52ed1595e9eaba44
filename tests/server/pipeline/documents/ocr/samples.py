"""Pages that the tests make: pictures by Pillow, PDFs by hand."""

import io
import struct
import zlib
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

INVOICE = [
    ("Description", "Qty", "Unit price", "Amount"),
    ("Steel bolts M8", "120", "0.35", "42.00"),
    ("Copper wire 2 mm", "15", "8.90", "133.50"),
    ("Safety gloves", "1", "7.25", "7.25"),
    ("Total", "", "", "182.75"),
]
COLUMNS = (60, 420, 560, 760)
PITCH = 48


def invoice() -> Image.Image:
    """A small page with a table, its text drawn by the font that Pillow carries."""
    image = Image.new("RGB", (960, 480), "white")
    draw = ImageDraw.Draw(image)
    draw.text((60, 40), "INVOICE 2024-0117", font=ImageFont.load_default(36), fill="black")
    for i, row in enumerate(INVOICE):
        for x, text in zip(COLUMNS, row, strict=True):
            draw.text((x, 130 + i * PITCH), text, font=ImageFont.load_default(26), fill="black")
    return image


def line(text: str = "Amount due 512.40", size: tuple[int, int] = (400, 60)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((20, 14), text, font=ImageFont.load_default(28), fill="black")
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(width: int, height: int, rows: bytes, *, bits: int = 8, colour: int = 0) -> bytes:
    """A PNG that says what it likes of its size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def text(*lines: str, x: int = 72, y: int = 720, size: int = 12, mode: int = 0) -> bytes:
    """A content stream with lines of Helvetica."""
    body = b"".join(f"({line}) Tj T*\n".encode("latin-1") for line in lines)
    return b"BT %d Tr /F1 %d Tf %d TL %d %d Td\n" % (mode, size, size + 2, x, y) + body + b"ET\n"


def pdf(
    *contents: bytes,
    box: Sequence[float] = (0, 0, 612, 792),
    page: bytes = b"",
    image: Image.Image | None = None,
    trailer: bytes = b"",
    extra: Sequence[bytes] = (),
) -> bytes:
    """A PDF with a page for each content stream; `/Im` is the image, if there is one.

    Objects: 1 the catalogue, 2 the page tree, 3 the font `/F1`, 4 the image, 5 and on `extra`, of
    which the first may be the font `/F2`.
    """
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", font, _image(image), *extra]
    kids = []
    for content in contents:
        objects.append(b"<< /Length %d >>\nstream\n" % len(content) + content + b"\nendstream")
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [%s] /Contents %d 0 R %s"
            b" /Resources << /Font << /F1 3 0 R /F2 5 0 R >> /XObject << /Im 4 0 R >> >> >>"
            % (" ".join(map(str, box)).encode(), len(objects), page)
        )
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(kids), b" ".join(kids))
    out, offsets = b"%PDF-1.7\n", []
    parts = [out]
    position = len(out)
    for number, body in enumerate(objects, start=1):
        part = b"%d 0 obj\n" % number + body + b"\nendobj\n"
        offsets.append(position)
        position += len(part)
        parts.append(part)
    parts.append(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    parts += [b"%010d 00000 n \n" % offset for offset in offsets]
    parts.append(
        b"trailer\n<< /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n"
        % (len(objects) + 1, trailer, position)
    )
    return b"".join(parts)


def _image(image: Image.Image | None) -> bytes:
    if image is None:
        return b"null"
    pixels = zlib.compress(image.convert("L").tobytes())
    return (
        b"<< /Type /XObject /Subtype /Image /Width %d /Height %d /ColorSpace /DeviceGray"
        b" /BitsPerComponent 8 /Filter /FlateDecode /Length %d >>\nstream\n"
        % (image.width, image.height, len(pixels))
        + pixels
        + b"\nendstream"
    )
