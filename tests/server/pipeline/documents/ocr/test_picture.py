"""Pictures of every make come out as a viewer shows them; damaged ones are refused."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image
from tests.server.pipeline.documents.ocr.samples import encoded, line, png

from turret_server.errors import BadRequest, PayloadTooLarge
from turret_server.pipeline.documents.ocr import PictureSettings
from turret_server.pipeline.documents.ocr.picture import Picture, decode

SETTINGS = PictureSettings(max_pixels=1_000_000)


def seen(image: Image.Image) -> np.ndarray:
    return decode(image)


def grey(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"), dtype=int)


def open_(data: bytes, kind: str) -> Picture:
    return Picture(data, kind, lambda pixels: [], SETTINGS)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "RGBA", "LA", "I", "F"])
def test_every_mode_shows_the_same(mode):
    image = line()
    shown = seen(image.convert("L").convert(mode) if mode in "IF" else image.convert(mode))
    assert shown.shape == (60, 400, 3)
    assert np.abs(shown[:, :, 0].astype(int) - grey(image)).mean() < 8


def test_16_bits():
    wide = grey(line()).astype(np.uint16) * 257
    image = Image.open(io.BytesIO(encoded(Image.fromarray(wide))))
    assert image.mode.startswith("I")
    assert (seen(image)[:, :, 0] == grey(line())).all()


def test_channels_are_blue_green_red():
    assert seen(Image.new("RGB", (1, 1), (255, 0, 7)))[0, 0].tolist() == [7, 0, 255]


def test_what_is_transparent_is_white():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    assert seen(image)[0, :, 0].tolist() == [255, 0]
    palette = Image.new("P", (2, 1), 0)
    palette.info["transparency"] = 0
    assert seen(palette)[0, :, 0].tolist() == [255, 255]


def test_exif_orientation_is_followed():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    data = encoded(line(), "JPEG", exif=exif)
    page = open_(data, "JPEG").read(1)
    assert (page.width, page.height, page.unit) == (60, 400, "px")


def test_pages_of_a_tiff():
    sizes = [(50, 40), (60, 30), (70, 20)]
    first, *others = [Image.new("L", size, 255) for size in sizes]
    picture = open_(encoded(first, "TIFF", save_all=True, append_images=others), "TIFF")
    assert picture.pages == 3
    assert [(picture.read(n).width, picture.read(n).height) for n in (3, 1, 2)] == [
        (70, 20),
        (50, 40),
        (60, 30),
    ]
    assert picture.read(2).number == 2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_what_is_animated_the_first_frame_is_read(kind):
    white, black = Image.new("RGB", (40, 40), "white"), Image.new("RGB", (40, 40), "black")
    data = encoded(white, kind, save_all=True, append_images=[black, black])
    pictures = []
    picture = Picture(data, kind, lambda pixels: pictures.append(pixels) or [], SETTINGS)
    assert picture.pages == 1
    picture.read(1)
    assert pictures[0].mean() > 250


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1)])
def test_the_smallest(size):
    page = open_(encoded(Image.new("L", size)), "PNG").read(1)
    assert (page.width, page.height) == size


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_cut_off(kind):
    data = encoded(line(), kind)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(BadRequest, match=f"the {kind} picture cannot be decoded"):
            open_(data[: int(len(data) * share)], kind).read(1)


def test_random_damage_is_refused_or_read():
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        data = encoded(line(), kind)
        for _ in range(30):
            broken = bytearray(data)
            for at in rng.integers(8, len(data), 5):
                broken[at] = rng.integers(256)
            with contextlib.suppress(BadRequest, PayloadTooLarge):
                open_(bytes(broken), kind).read(1)


def test_a_claim_of_another_kind_is_not_followed():
    with pytest.raises(BadRequest, match="PNG"):
        open_(encoded(line(), "JPEG"), "PNG")


def test_a_huge_picture_is_refused_before_it_is_decoded():
    with pytest.raises(PayloadTooLarge, match="1001 x 1000 pixels"):
        open_(png(1001, 1000, b""), "PNG")
    with pytest.raises(PayloadTooLarge, match="too many pixels"):
        open_(png(100_000, 100_000, b""), "PNG")


def test_more_data_than_the_size_says_is_not_unpacked():
    """50 MB of zeros in 50 kB, for a picture of 10 by 10."""
    picture = open_(png(10, 10, bytes(50_000_000)), "PNG")
    assert picture.read(1).width == 10


def test_a_huge_page_inside_a_tiff_is_refused():
    small, large = Image.new("1", (10, 10)), Image.new("1", (2000, 2000))
    data = encoded(small, "TIFF", save_all=True, append_images=[large], compression="group4")
    picture = open_(data, "TIFF")
    picture.read(1)
    with pytest.raises(PayloadTooLarge, match="2000 x 2000 pixels"):
        picture.read(2)
