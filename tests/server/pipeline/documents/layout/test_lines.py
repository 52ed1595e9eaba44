from __future__ import annotations

import random

from tests.server.pipeline.documents.layout.drawing import boxes, cell

from turret_server.pipeline.documents.layout.lines import find_lines
from turret_server.pipeline.documents.page import Word, upright


def lines(words: list[Word]) -> list[str]:
    found, rows = find_lines(boxes(words))
    return [" ".join(found.text[i] for i in row) for row in rows]


def test_words_come_in_lines_whatever_their_order():
    words = [*cell(0, 0, "one two three"), *cell(0, 12, "four five six")]
    random.Random(0).shuffle(words)
    assert lines(words) == ["one two three", "four five six"]


def test_letters_of_uneven_height_share_a_line():
    words = [
        Word("are", upright(0, 3, 15, 10)),
        Word("Type", upright(18, 0, 38, 13)),
        Word("-", upright(41, 5, 46, 7)),
        Word("end.", upright(49, 0, 69, 10)),
    ]
    assert lines(words) == ["are Type - end."]


def test_a_large_word_on_the_same_baseline_belongs_to_the_line():
    words = [*cell(0, 10, "Total"), Word("12.50", upright(60, 0, 110, 20))]
    assert lines(words) == ["Total 12.50"]


def test_a_curved_line_stays_one_line():
    # It climbs by half a line in all, at most by a quarter from word to word.
    climb = [0, 1, 3, 5, 7, 8, 8, 7, 5, 3]
    words = [w for i, y in enumerate(climb) for w in cell(30 * i, 20 + y, f"w{i}")]
    words += [w for i, y in enumerate(climb) for w in cell(30 * i, 33 + y, f"v{i}")]
    assert lines(words) == [" ".join(f"{c}{i}" for i in range(10)) for c in "wv"]


def test_a_word_goes_with_the_line_it_stands_next_to():
    # "August" stands between two lines, nearer in height to the one it is far from.
    words = [*cell(0, 6, "Ergle"), *cell(300, 0, "DATE"), *cell(323, 3.5, "August")]
    assert lines(words) == ["DATE August", "Ergle"]


def test_words_on_top_of_each_other_are_lines_of_their_own():
    words = [Word(text, upright(0, 0, 30, 10)) for text in ("a", "b", "c")]
    assert sorted(lines(words)) == ["a", "b", "c"]
