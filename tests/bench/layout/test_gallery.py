"""The gallery of the documentation."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from bench.layout.gallery import gallery
from bench.layout.samples import make_samples
from bench.layout.svg import to_svg

from turret_server.pipeline.documents.page import Page, Word, upright


@pytest.fixture(scope="module")
def shown() -> tuple[str, dict[str, str]]:
    return gallery(list(make_samples(1)), "pictures")


def test_every_picture_is_linked_and_there(shown: tuple[str, dict[str, str]]) -> None:
    text, files = shown

    links = re.findall(r"!\[The page\]\(pictures/(.+?)\)", text)
    assert set(links) == set(files)
    assert len(links) >= 9


def test_texts_are_fenced_and_not_endless(shown: tuple[str, dict[str, str]]) -> None:
    text, _ = shown

    assert text.count("```") % 4 == 0
    assert max(map(len, text.split("\n"))) < 130


def test_a_picture_holds_every_word() -> None:
    words = [Word("a<b", upright(1, 2, 30, 10)), Word("up", (50, 90, 50, 60, 60, 60, 60, 90))]

    root = ElementTree.fromstring(to_svg(Page(words, 100, 100)))

    texts = [element for element in root if element.tag.endswith("text")]
    assert [element.text for element in texts] == ["a<b", "up"]
    assert texts[0].get("transform") is None
    assert str(texts[1].get("transform")).startswith("rotate(-90.0")
