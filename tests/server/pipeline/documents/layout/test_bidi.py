"""Cases of UAX 9, L2, for whole words; what is read is written here from its first word on."""

from __future__ import annotations

import pytest

from turret_server.pipeline.documents.layout.bidi import (
    direction,
    reading_order,
    reads_right_to_left,
)


@pytest.mark.parametrize(
    ("shown", "right_to_left", "read"),
    [
        ("גימל בית אלף", True, "אלף בית גימל"),
        ("one two", False, "one two"),
        # A Latin name, and a number of two words, in a Hebrew line.
        ("בית John Smith אלף", True, "אלף John Smith בית"),
        ("3 001 אלף", True, "אלף 3 001"),
        # A Hebrew run in an English line, a number within it.
        ("see בית 47 אלף here", False, "see אלף 47 בית here"),
        ("see בית - אלף here", False, "see אלף - בית here"),
        # Nothing turns what is neither.
        ("- 12 -", False, "- 12 -"),
        ("", False, ""),
    ],
)
def test_words_are_read_in_their_order(shown: str, right_to_left: bool, read: str):
    words = shown.split()
    assert [words[i] for i in reading_order(words, right_to_left)] == read.split()


def test_the_direction_of_a_word_is_that_of_its_first_letter():
    words = ["abc", "(סגור)", "۱۲۳", "12.50", "—", "سلام", "你好"]
    assert [direction(word) for word in words] == ["L", "R", "N", "N", "", "R", "L"]


def test_most_words_decide_where_a_page_begins():
    assert reads_right_to_left(["שלום", "עולם", "Ltd."])
    assert not reads_right_to_left(["hello", "world", "עולם"])
    assert not reads_right_to_left(["12", "—"])
