"""Answers and the words that they rest on."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turret_server.pipeline.documents.cite import Citation, cite
from turret_server.pipeline.documents.cite.tokens import tokenize
from turret_server.pipeline.documents.layout.text import PageText
from turret_server.pipeline.documents.page import Page, Word, upright

Draw = Callable[[str], tuple[Page, PageText]]

INVOICE = """\
Invoice 2024-05-03          Page 1
Bill to:                    Ship to:
Northwind Traders Inter-    12 Main Street
national Limited            Springfield
Item        Qty   Price
Bolt        1     1.234,50 €
Nut         3     12,00
Total       4     1 246,50"""


@pytest.fixture
def ask(draw: Draw) -> Callable[..., list[tuple[str, str]]]:
    def ask(answer: str, question: str = "", text: str = INVOICE) -> list[tuple[str, str]]:
        """Each span of the answer, and the words cited for it."""
        page, laid_out = draw(text)
        found = cite(answer, [page], [laid_out], question)
        return [(answer[each.start : each.end], each.text) for each in found]

    return ask


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("12 Main Street", [("12 Main Street", "12 Main Street")]),
        (" 12 MAIN street. ", [("12 MAIN street", "12 Main Street")]),
        ("$1,234.50", [("$1,234.50", "1.234,50")]),
        ("1246.50", [("1246.50", "1 246,50")]),
        ("1 246,50", [("1 246,50", "1 246,50")]),
        ("2024-05-03", [("2024-05-03", "2024-05-03")]),
        ("2024/05/03", [("2024/05/03", "2024-05-03")]),
        ("12 Main Street, Springfield", [("12 Main Street, Springfield",
                                         "12 Main Street Springfield")]),
        ("Traders International Limited", [("Traders International Limited",
                                            "Traders Inter- national Limited")]),
        ("Traders Inter-national Limited", [("Traders Inter-national Limited",
                                             "Traders Inter- national Limited")]),
        ("Bolt 1 1234.5", [("Bolt 1 1234.5", "Bolt 1 1.234,50")]),
        ("", []),
        ("...", []),
    ],
)  # fmt: skip
def test_an_answer_is_found_however_it_is_written(
    ask: Callable[..., object], answer: str, expected: list[tuple[str, str]]
) -> None:
    assert ask(answer) == expected


def test_a_cell_is_followed_over_its_lines(ask: Callable[..., object]) -> None:
    text = """\
Number    Number     Total
of all    of states
plants    included   in all
seen      here"""
    for cell in ("Number of all plants seen", "Number of states included here", "Total in all"):
        assert ask(cell, text=text) == [(cell, cell)]


def test_words_of_a_sentence_are_not_joined_by_chance(ask: Callable[..., object]) -> None:
    text = """\
goods     price
delivered paid"""
    assert ask("goods delivered", text=text) == [("goods delivered", "goods delivered")]
    assert ask("The goods delivered were few", text=text) == [("delivered", "delivered")]


def test_signs_between_words_are_part_of_a_citation(ask: Callable[..., object]) -> None:
    found = ask("Smith, J. / Republican", text="- Smith - J. / | Republican - 5")
    assert found == [("Smith, J. / Republican", "Smith - J. / | Republican")]


@pytest.mark.parametrize("answer", ["1246", "1246.51", "12.01", "1.234.50", "-4", "04", "412"])
def test_numbers_are_never_nearly_right(ask: Callable[..., object], answer: str) -> None:
    assert ask(answer) == []


def test_letters_may_differ_and_lower_the_score(draw: Draw) -> None:
    page, text = draw(INVOICE)
    [citation] = cite("Nortwind Traders", [page], [text])
    assert citation.text == "Northwind Traders"
    assert citation.score == pytest.approx(1 - 1 / 16)


def test_a_sentence_is_cited_where_it_says_something(ask: Callable[..., object]) -> None:
    answer = "The total is 1,246.50, for which Northwind Traders is billed on 3 pages."
    assert ask(answer, "What is the total?") == [
        ("1,246.50", "1 246,50"),
        ("Northwind Traders", "Northwind Traders"),
    ]


def test_each_value_of_json_is_cited(ask: Callable[..., object]) -> None:
    answer = json.dumps(
        {"Page": "Bolt", "qty": 3, "to": "12 Main Street\nSpringfield", "x": None, "Nut": "Screw"}
    )
    assert ask(answer) == [
        ("Bolt", "Bolt"),
        ("3", "3"),
        (r"12 Main Street\nSpringfield", "12 Main Street Springfield"),
    ]


def test_lines_are_cited_by_themselves(ask: Callable[..., object]) -> None:
    assert ask("Bolt\nNut") == [("Bolt", "Bolt"), ("Nut", "Nut")]


TWICE = """\
Subtotal               40.00
Tax                     0.00

Total                  40.00

              Paid      Due
May          40.00    10.00
June         10.00    40.00"""


@pytest.mark.parametrize(
    ("question", "answer", "word"),
    [
        ("What is the subtotal?", "40.00", 1),
        ("What is the total?", "40.00", 5),
        ("How much was paid in May?", "40.00", 9),
        ("How much is due in June?", "40.00", 13),
        ("How much is due in May?", "10.00", 10),
        ("", "40.00", 1),
    ],
)
def test_the_occurrence_near_the_question_is_cited(
    draw: Draw, question: str, answer: str, word: int
) -> None:
    page, text = draw(TWICE)
    [citation] = cite(answer, [page], [text], question)
    assert citation.words == (word,)


def test_json_values_are_cited_near_their_keys(draw: Draw) -> None:
    page, text = draw(TWICE)
    answer = json.dumps({"subtotal": "40.00", "TotalAmount": "40.00", "x": ["40.00"]})
    found = cite(answer, [page], [text], "What is due in June?")
    assert [each.words for each in found] == [(1,), (5,), (13,)]


def test_the_page_of_the_question_is_cited(draw: Draw) -> None:
    drawn = [draw("Subtotal 40.00"), draw("Total 40.00"), draw("40.00 in all")]
    pages, texts = [page for page, _ in drawn], [text for _, text in drawn]
    [citation] = cite("40.00", pages, texts, "What is the total?")
    assert citation == Citation(0, 5, 1, (1,), (60, 0, 110, 14), "40.00", 1.0)


def test_the_box_is_around_all_words(draw: Draw) -> None:
    page, text = draw(INVOICE)
    [citation] = cite("12 Main Street Springfield", [page], [text])
    assert citation.box == (280, 40, 420, 74)


def test_words_left_out_of_the_text_are_not_cited(draw: Draw) -> None:
    page, text = draw("seen unseen")
    assert cite("unseen", [page], [PageText("seen", [text.spans[0], (-1, -1)])]) == []


def test_words_may_follow_each_other_as_in_the_source(draw: Draw) -> None:
    page, text = draw("name my")  # as on paper, from right to left
    page, text = Page(page.words[::-1], 1, 1), PageText(text.text, text.spans[::-1])
    assert [each.words for each in cite("my name", [page], [text])] == [(0, 1)]


def test_a_turned_page_is_read_as_its_text_is(draw: Draw) -> None:
    page, text = draw(INVOICE)
    words = [
        Word(word.text, upright(-word.box[3], word.box[0], -word.box[1], word.box[2]))
        for word in page.words
    ]
    [citation] = cite("Northwind Traders International Limited", [Page(words, 1, 1)], [text])
    assert citation.text == "Northwind Traders Inter- national Limited"


def test_no_pages_and_empty_pages(draw: Draw) -> None:
    assert cite("answer", [], []) == []
    assert cite("answer", [Page([], 1, 1)], [PageText("", [])], "question") == []


WORDS = st.sampled_from(
    ["ab", "Ab.", "abcdef-", "12", "1,200", "3.5", "年", "{", '"', "é", "total"]
)
TEXT = st.lists(WORDS, max_size=12).map(" ".join)


@settings(derandomize=True, deadline=None, max_examples=100,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(answer=TEXT | st.lists(TEXT).map(json.dumps), lines=st.lists(TEXT, max_size=4), asked=TEXT)
def test_citations_hold(draw: Draw, answer: str, lines: list[str], asked: str) -> None:
    page, text = draw("\n".join(lines))
    end = 0
    found = cite(answer, [page], [text], asked)
    for each in found:
        assert end <= each.start < each.end <= len(answer)
        assert 0 < each.score <= 1
        assert each.text == " ".join(page.words[at].text for at in each.words)
        end = each.end
    assert cite(answer, [page], [text], asked) == found


@settings(derandomize=True, deadline=None, max_examples=100,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(lines=st.lists(st.lists(WORDS, min_size=1, max_size=6), min_size=1), data=st.data())
def test_any_words_of_a_line_are_found(
    draw: Draw, lines: list[list[str]], data: st.DataObject
) -> None:
    page, text = draw("\n".join(" ".join(line) for line in lines))
    line = data.draw(st.sampled_from(lines))
    start = data.draw(st.integers(0, len(line) - 1))
    answer = " ".join(line[start : data.draw(st.integers(start + 1, len(line)))])
    tokens = tokenize(answer)
    found = cite(answer, [page], [text])
    if answer.startswith(("{", "[", '"')) or not tokens:
        return  # may be JSON, or nothing to find
    assert len(found) == 1
    assert found[0].score == 1
    assert [token.key for token in tokenize(found[0].text)] == [token.key for token in tokens]


@pytest.mark.parametrize("words", ["a ", "ab- ", "1 234 ", "年年 ", "{} ", "random "])
def test_work_is_bounded(draw: Draw, words: str) -> None:
    chooser = random.Random(0)
    text = words * (10_000 // len(words.split()))
    if words == "random ":
        text = " ".join(chooser.choices("abcdefgh", k=10_000))
    for line in (1, 30):  # words; each a cell
        pieces = text.split()
        drawn = "\n".join("  ".join(pieces[at : at + line]) for at in range(0, len(pieces), line))
        page, laid_out = draw(drawn)
        answer = (" ".join(chooser.choices("abcdefgh", k=1000)) + words * 4000)[:4000]
        started = time.process_time()
        cite(answer, [page], [laid_out], "a b 1 年")
        # Measured up to 0.1 s; the rest is for machines that are slow or busy.
        assert time.process_time() - started < 1.0
