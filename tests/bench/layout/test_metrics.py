"""Scores of texts that were written by hand, for pages that were."""

from __future__ import annotations

import pytest
from bench.layout.metrics import adjacency_f1, chunks_of, linear_order, local_order, score
from bench.layout.sheet import Sample, Truth
from bench.layout.tables import relations_of

from turret_server.pipeline.documents.page import Page, Word, upright

CELLS = [("Item",), ("Price",), ("green", "bolt"), ("4.50",), ("nut",), ("19.00",)]
TRUTH = Truth(cells=CELLS, relations=relations_of([[0, 1], [2, 3], [4, 5]]))
GOOD = "Item        Price\n\ngreen bolt   4.50\nnut         19.00"


def f1(text: str, truth: Truth = TRUTH) -> float:
    return adjacency_f1(truth, chunks_of(text))


def test_relations_pass_over_empty_cells() -> None:
    assert relations_of([[0, None, 1], [2, 3, None]]) == {
        (0, 1, "right"), (2, 3, "right"), (0, 2, "below"),
    }  # fmt: skip


def test_a_text_that_keeps_all_cells_apart_and_in_line() -> None:
    assert f1(GOOD) == 1.0


def test_cells_one_space_apart_are_one() -> None:
    # The joined line is no cell: of 7 relations the 3 of the other rows' cells are left at most.
    assert f1(GOOD.replace("bolt   4.50", "bolt 4.50")) < 0.5


def test_a_cell_in_two_pieces_is_none() -> None:
    assert f1(GOOD.replace("green bolt", "green  bolt")) < 0.8


def test_a_column_out_of_line_is_not_below() -> None:
    shifted = GOOD.replace("nut         19.00", "nut                    19.00")

    assert f1(shifted) == pytest.approx(2 * 6 / (6 + 7))


def test_lines_of_one_cell_are_one_cell() -> None:
    truth = Truth([("a", "b", "c"), ("d",), ("e",), ("f",)], relations_of([[0, 1], [2, 3]]))

    assert f1("a b   d\nc\n\ne     f", truth) == 1.0


def test_neighbours_of_loose_cells_do_not_matter() -> None:
    cells = [("key:",), ("value",), ("other:",), ("one",)]
    truth = Truth(cells, {(0, 1, "right"), (2, 3, "right")}, loose={1, 3})

    assert f1("key:  value    other:  one", truth) == 1.0


def test_tables_from_the_right_count_in_both_directions() -> None:
    truth = Truth([("א",), ("ב",)], {(0, 1, "right")}, mirrored=True)

    assert f1("א  ב", truth) == f1("ב  א", truth) == 1.0


def test_columns_count_as_displayed() -> None:
    truth = Truth([("請求書",), ("1",), ("a",), ("22",)], relations_of([[0, 1], [2, 3]]))

    assert f1("請求書   1\na       22", truth) == 1.0


ORDER = [("a", "b"), ("c", "d"), ("e", "f")]


@pytest.mark.parametrize(
    ("text", "local", "linear"),
    [
        ("a b\nc d\ne f", 1.0, 1.0),
        ("a b c d e f", 1.0, 1.0),
        ("a b   e f\nc d", 4 / 5, 11 / 15),  # two columns: e does not follow d
        ("f e d c b a", 0.0, 0.0),
        ("a  b\nc  d\ne  f", 2 / 5, 1.0),
    ],
)
def test_order(text: str, local: float, linear: float) -> None:
    assert local_order(ORDER, chunks_of(text)) == pytest.approx(local)
    assert linear_order(ORDER, chunks_of(text)) == pytest.approx(linear)


def test_words_glued_lost_and_invented() -> None:
    words = [Word(text, upright(i, 0, i + 1, 1)) for i, text in enumerate(("Total:", "$5", "due"))]
    sample = Sample("s", "k", "clean", Page(words, 9, 9), Truth())

    def losses(text: str) -> tuple[int, int, int]:
        scores = score(sample, text)
        return scores.glued, scores.lost, scores.invented

    assert losses("Total:  $5 due") == (0, 0, 0)
    assert losses("Total:$5 due") == (2, 0, 0)
    assert losses("Total: $5") == (0, 1, 0)
    assert losses("Total: $5 due due now") == (0, 0, 2)
    assert score(sample, "Total: $5").adjacency is None


def test_marks_of_direction_are_not_seen() -> None:
    assert [chunk.words for chunk in chunks_of("\u202bאב\u202c  1")] == [("אב",), ("1",)]
