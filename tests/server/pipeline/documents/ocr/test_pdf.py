"""Words of PDFs, where they stand, and when a page is read by OCR instead."""

import numpy as np
import pypdfium2
import pytest
from PIL import Image
from tests.server.pipeline.documents.ocr.samples import line, pdf, text

from turret_server.errors import BadRequest, Unprocessable
from turret_server.pipeline.documents.layout import lay_out
from turret_server.pipeline.documents.ocr import PictureSettings, pdf_text
from turret_server.pipeline.documents.ocr.pdf import Pdf
from turret_server.pipeline.documents.page import Page, Word, upright

SCAN = b"q 612 0 0 792 0 0 cm /Im Do Q\n"
SEEN = Word("seen", upright(0, 0, 150, 75), 0.9)


class Recognizer:
    """Stands for OCR: sees one word, and keeps what it was shown."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.darkest: list[int] = []

    def __call__(self, pixels: np.ndarray) -> list[Word]:
        self.shapes.append(pixels.shape)
        self.darkest.append(int(pixels.min()))
        return [SEEN]


def read(data: bytes, ocr: str = "auto", number: int = 1) -> Page:
    return Pdf(data, ocr, Recognizer(), PictureSettings()).read(number)


def words(data: bytes, ocr: str = "auto") -> list[str]:
    return [word.text for word in read(data, ocr).words]


def test_boxes_are_in_points_from_the_top_left():
    page = read(pdf(text("Hello world", x=72, y=720)))
    assert (page.width, page.height, page.unit, page.number) == (612, 792, "pt", 1)
    hello, world = page.words
    assert (hello.text, world.text) == ("Hello", "world")
    # Widths of Helvetica, in thousandths of 12 points: Hello 2278, a space 278, world 2389.
    assert hello.box[0::2] == pytest.approx((72, 72 + 27.336), abs=0.05)
    assert world.box[0::2] == pytest.approx((72 + 30.672, 72 + 59.34), abs=0.05)
    assert hello.box[1] < 792 - 720 - 8.6 < 792 - 720 < hello.box[3] < 792 - 720 + 4
    assert (hello.confidence, hello.line, world.line) == (None, 0, 0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[(In)-30(voi)20(ce)-250(total)] TJ", ["Invoice", "total"]),  # kerning is no space
        ("3 Tc (TOTAL DUE) Tj", ["TOTAL", "DUE"]),  # nor is letter-spacing
        ("[(1)-900(2)-900(3)-900(4)-900(5)] TJ", ["1", "2", "3", "4", "5"]),
        ("(well-) Tj 0 -14 Td (known) Tj", ["well-", "known"]),
        ("(E = mc) Tj 5 Ts (2) Tj", ["E", "=", "mc2"]),
        ("(a) Tj 0 -60 Td (b) Tj", ["a", "b"]),
        ("(soft\\255ly) Tj", ["soft-ly"]),
        ("(caf\\351 \\200 5) Tj", ["café", "€", "5"]),
    ],
)
def test_words_are_parted_by_real_gaps(content, expected):
    assert words(pdf(f"BT /F1 12 Tf 200 700 Td {content} ET".encode())) == expected


def test_ligatures_are_spelled_out():
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Times-Roman /Encoding /StandardEncoding >>"
    data = pdf(
        b"BT /F2 12 Tf 72 700 Td (\\256nance \\257oor) Tj ET",
        extra=[font],
    )
    assert words(data) == ["finance", "floor"]


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize(
    "matrix", ["1 0 0 1", "0 1 -1 0", "-1 0 0 -1", "0 -1 1 0", "0.8 0.6 -0.6 0.8"]
)
def test_quads_surround_the_ink_and_run_as_the_text_does(turn, matrix):
    content = f"BT /F1 20 Tf {matrix} 300 400 Tm (Whig) Tj ET".encode()
    data = pdf(content, page=b"/Rotate %d /CropBox [40 60 600 700]" % turn)
    page = read(data)
    shown = pypdfium2.PdfDocument(data)[0].render(scale=2).to_numpy()
    assert (round(page.width * 2), round(page.height * 2)) == (shown.shape[1], shown.shape[0])
    ys, xs = np.nonzero(shown[:, :, 0] < 128)
    (word,) = page.words
    corners = np.array(word.quad).reshape(4, 2)
    across, down = corners[1] - corners[0], corners[3] - corners[0]
    ink = np.stack((xs, ys), axis=1) / 2 - corners[0]
    along = ink @ across / (across @ across)
    below = ink @ down / (down @ down)
    assert -0.02 <= along.min() < 0.06
    assert 0.94 < along.max() <= 1.02
    assert -0.02 <= below.min() < 0.3
    assert 0.8 < below.max() <= 1.02
    # "W" has no ink below the line and "g" has: the first edge runs with the reading.
    assert below[along > 0.8].max() > below[along < 0.3].max() + 0.1


def test_what_is_off_the_page_is_left_out():
    content = text("on") + text("above", y=900) + text("beside", x=-300) + text("cut off", y=30)
    assert words(pdf(content, page=b"/CropBox [0 100 612 792]")) == ["on"]


def test_text_that_is_not_painted_counts_only_without_ocr():
    data = pdf(SCAN + text("layer", mode=3), image=line())
    assert words(data) == ["seen"]
    assert words(data, "never") == ["layer"]
    assert words(pdf(text("shown") + text("hidden", y=600, mode=3))) == ["shown"]


def test_ocr_as_asked():
    data = pdf(text("text"))
    assert words(data, "always") == ["seen"]
    assert words(pdf(SCAN, image=line()), "never") == []


def test_a_scan_is_rendered_and_its_words_are_in_points():
    recognizer = Recognizer()
    document = Pdf(pdf(SCAN, image=line()), "auto", recognizer, PictureSettings(dpi=150))
    (word,) = document.read(1).words
    assert recognizer.shapes[0] == pytest.approx((1650, 1275, 3), abs=1)
    assert recognizer.darkest[0] < 50
    assert word.box == pytest.approx((0, 0, 72, 36), rel=0.01)
    assert word.confidence == 0.9


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (SCAN + text("Page 7"), ["seen"]),  # a stamp on a scan
        (b"q 100 0 0 50 0 0 cm /Im Do Q " + text("Page 7"), ["Page", "7"]),  # a logo
        (SCAN + text(*["A line of the text on a background picture"] * 9), None),
        (b"10 10 m 50 60 l S", ["seen"]),  # text may be drawn as lines
        (b"", []),  # an empty page
    ],
)
def test_pages_that_carry_usable_text_are_not_read_by_ocr(content, expected):
    found = words(pdf(content, image=line()))
    assert found == expected if expected is not None else "seen" not in found


def test_text_that_the_fonts_do_not_name_is_read_by_ocr():
    font = (
        b"<< /Type /Font /Subtype /Type1 /BaseFont /ABCDEF+Odd /FirstChar 65 /LastChar 67"
        b" /Widths [600 600 600] /Encoding << /Differences [65 /g1 /g2 /g3] >> >>"
    )
    data = pdf(
        b"BT /F2 12 Tf 72 700 Td (ABC CBA) Tj ET",
        extra=[font],
    )
    assert words(data) == ["seen"]
    assert words(data, "never") == []


FIELD = (
    b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (name) /V (Jane Doe) /DA (/F1 12 Tf 0 g)"
    b" /Rect [200 600 400 620] /F 4 >>"
)
FORM = b"<< /Fields [5 0 R] /NeedAppearances true /DR << /Font << /F1 3 0 R >> >> >>"


def test_filled_in_forms():
    data = pdf(text("Name:"), page=b"/Annots [5 0 R]", extra=[FIELD, FORM])
    data = data.replace(b"/Type /Catalog", b"/Type /Catalog /AcroForm 6 0 R")
    assert words(data) == ["Name:", "Jane", "Doe"]
    assert read(data).words[1].box[0] > 200


def box(name: bytes, x: int, state: bytes, more: bytes = b"") -> bytes:
    return (
        b"<< /Type /Annot /Subtype /Widget /FT /Btn /T (%s) /V /%s /AS /%s /Rect [%d 595 %d 615]"
        b" /F 4 /AP << /N << /On 9 0 R >> >> %s >>" % (name, state, state, x, x + 20, more)
    )


def form_of(*boxes: bytes, page: bytes = b"") -> bytes:
    """A page with up to three boxes, ticked by a cross, each to the left of its name."""
    drawn = b"BT /F1 14 Tf 5 5 Td (X) Tj ET"
    cross = (
        b"<< /Type /XObject /Subtype /Form /BBox [0 0 20 20] /Length %d"
        b" /Resources << /Font << /F1 3 0 R >> >> >>\nstream\n" % len(drawn)
    )
    fields = b" ".join(b"%d 0 R" % (5 + at) for at in range(len(boxes)))
    extra = [*boxes, *[b"null"] * (3 - len(boxes)), b"<< /Fields [%s] >>" % fields]
    data = pdf(
        text("Student", x=125, y=600) + text("Retired", x=325, y=600),
        page=b"/Annots [%s] " % fields + page,
        extra=[*extra, cross + drawn + b"\nendstream"],
    )
    return data.replace(b"/Type /Catalog", b"/Type /Catalog /AcroForm 8 0 R")


def test_what_is_ticked_in_a_form():
    student, retired = box(b"s", 100, b"Off"), box(b"r", 300, b"On")
    page = read(form_of(student, retired))
    assert [word.text for word in page.words] == ["Student", "Retired", "☐", "☑"]
    assert page.words[3].quad == upright(300, 792 - 615, 320, 792 - 595)
    assert lay_out(page).text == "☐ Student  ☑ Retired"


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_what_is_ticked_on_a_page_that_is_turned(turn):
    data = form_of(box(b"s", 100, b"Off"), box(b"r", 300, b"On"), page=b"/Rotate %d" % turn)
    assert lay_out(read(data)).text == "☐ Student  ☑ Retired"


def test_boxes_that_are_not_seen_are_left_out():
    hidden, off = box(b"s", 100, b"On", b"/F 2"), box(b"r", 900, b"On")
    hidden = hidden.replace(b"/F 4", b"")
    assert words(form_of(hidden, off)) == ["Student", "Retired"]


def test_encrypted():
    key = b"<" + b"5a" * 32 + b">"
    trailer = b"/ID [<01> <01>] /Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O %s /U %s >>"
    with pytest.raises(Unprocessable, match="encrypted"):
        read(pdf(text("secret"), trailer=trailer % (key, key)))


@pytest.mark.parametrize(
    "data",
    [
        b"%PDF-1.7\n",
        b"%PDF-1.7\n" + b"\0" * 5000,
        pdf(),
        pdf(text("a"))[:300],
    ],
)
def test_damaged(data):
    with pytest.raises(BadRequest):
        read(data)


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 0, 0),
        (612, 792, 0, 0),
        (0, 0, 1e9, 1e9),
        (0, 0, 1e38, 1e38),
        (0, 0, 1, 200_000),
        (-1e6, -1e6, 1e6, 1e6),
        (0, 0, 0.001, 0.001),
    ],
)
def test_pages_of_any_size_are_rendered_within_bounds(box):
    recognizer = Recognizer()
    data = pdf(text("a"), box=tuple(f"{value:f}" for value in box))
    try:
        Pdf(data, "always", recognizer, PictureSettings(dpi=600)).read(1)
    except BadRequest:
        return
    height, width, _ = recognizer.shapes[0]
    assert 1 <= height * width <= 11_000_000  # sides are rounded up


def test_too_many_characters(monkeypatch):
    monkeypatch.setattr(pdf_text, "MAX_CHARS", 5)
    with pytest.raises(Unprocessable, match="6 characters"):
        read(pdf(text("abcdef")))


def test_random_damage_is_refused_or_read():
    rng = np.random.default_rng(0)
    data = pdf(SCAN, text("Hello world"), image=Image.new("L", (20, 20), 128))
    for _ in range(100):
        broken = bytearray(data)
        for at in rng.integers(9, len(data), 8):
            broken[at] = rng.integers(256)
        try:
            document = Pdf(bytes(broken), "auto", Recognizer(), PictureSettings())
            for number in range(1, document.pages + 1):
                document.read(number)
        except (BadRequest, Unprocessable):
            continue
