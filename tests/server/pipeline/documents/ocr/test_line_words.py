"""Words of a line: text from the recogniser, edges from the ink."""

import numpy as np
import pytest

from turret_server.pipeline.documents.ocr.line_words import ink_of, inked, split


def ink(width: int, *spans: tuple[int, int]) -> np.ndarray:
    columns = np.zeros(width, dtype=bool)
    for start, stop in spans:
        columns[start:stop] = True
    return columns


def test_edges_are_where_the_ink_ends():
    # "ab cd", letters 8 wide, 2 apart, 10 between the words.
    columns = ink(80, (10, 18), (20, 28), (38, 46), (48, 56))
    words = split("ab cd", [14, 24, 42, 52], [1.0] * 5, columns)
    assert [(w.text, w.left, w.right) for w in words] == [("ab", 10, 28), ("cd", 38, 56)]


def test_without_a_gap_words_part_half_way():
    words = split("a b", [10, 30], [1.0] * 3, ink(40, (0, 40)))
    assert [(w.text, w.left, w.right) for w in words] == [("a", 0, 20), ("b", 20, 40)]


def test_without_ink_edges_are_guessed():
    words = split("ab", [10, 20], [1.0] * 2, ink(40))
    assert [(w.text, w.left, w.right) for w in words] == [("ab", 0, 35)]


def test_ink_far_from_the_last_letter_is_not_its_own():
    words = split("abc", [10, 20, 30], [1.0] * 3, ink(100, (6, 34), (90, 92)))
    assert words[0].right == 45


def test_a_wide_gap_parts_though_no_space_was_read():
    columns = ink(200, (0, 48), (150, 178))
    words = split("abcdefgh", [4, 14, 24, 34, 44, 154, 164, 174], [1.0] * 8, columns)
    assert [w.text for w in words] == ["abcde", "fgh"]


def test_confidence_is_that_of_the_words_own_letters():
    words = split("ab c", [4, 14, 34], [1.0, 0.5, 0.1, 0.25], ink(40, (0, 18), (30, 38)))
    assert [w.confidence for w in words] == [0.75, 0.25]


def test_nothing_but_spaces():
    assert split("  ", [], [1.0, 1.0], ink(10)) == []


@pytest.mark.parametrize("paper", [255, 20])
def test_ink_differs_from_the_paper(paper):
    grey = np.full((20, 30), paper, dtype=np.uint8)
    grey[5:15, 10:20] = 255 - paper
    assert np.flatnonzero(inked(ink_of(grey), axis=0)).tolist() == list(range(10, 20))
    assert np.flatnonzero(inked(ink_of(grey), axis=1)).tolist() == list(range(5, 15))


def test_an_empty_page_has_no_ink():
    grey = np.random.default_rng(0).integers(250, 256, (20, 30)).astype(np.uint8)
    assert not ink_of(grey).any()
