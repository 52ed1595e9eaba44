"""What counts as the same word or number, and what doesn't."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turret_server.pipeline.documents.cite.tokens import is_number, number_key, tokenize

hold = settings(derandomize=True, deadline=None, max_examples=300)


def keys(text: str) -> list[str]:
    return [token.key for token in tokenize(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Acme, INC.", ["acme", "inc"]),
        ("“well-known”", ["well", "known"]),
        ("Straße", ["strasse"]),
        ("ﬁne Ｔｅｘｔ", ["fine", "text"]),
        ("cafe\u0301", ["café"]),
        ("合計5円", ["合", "計", "5", "円"]),
        ("5kg 5 kg 3rd", ["5", "kg", "5", "kg", "3", "rd"]),
        ("INV2024 12B7A9 B12", ["inv2024", "12b7a9", "b12"]),
        ("2024-05-03", ["2024", "05", "03"]),
        ("03.05.2024 1.2.3 10:30", ["03", "05", "2024", "1", "2", "3", "10", "30"]),
        ("007 0.50 .5 $.5", ["007", "0.5", "0.5", "0.5"]),
        ("-5 −5 -$5 $-5 (5) 3-5", ["-5", "-5", "-5", "-5", "5", "3", "5"]),
        ("1, 2, 3.", ["1", "2", "3"]),
        ("5% 5 %", ["5", "5"]),
        ("٣٫ ١٢", ["3", "12"]),
        ("... — _", []),
    ],
)
def test_text_as_tokens(text: str, expected: list[str]) -> None:
    assert keys(text) == expected


@pytest.mark.parametrize(
    "same",
    [
        ["1234.5", "$1,234.50", "1.234,50 €", "1'234.50", "1\u202f234,5", "1234,50"],
        ["1234567", "1,234,567", "1.234.567", "12,34,567", "1,234,567.00"],
        ["1234", "1,234", "1.234"],
        ["12.5", "12,5", "12,50"],
        ["1234.567", "1234,567"],
        ["0.125", "0,125"],
    ],
)
def test_numbers_are_the_same_however_written(same: list[str]) -> None:
    assert {tuple(keys(text)) for text in same} == {(same[0],)}


@pytest.mark.parametrize(
    ("first", "second"),
    [("12", "12.5"), ("12", "-12"), ("7", "007"), ("1.5", "15"), ("12", "1 2"), ("1,23", "123")],
)
def test_other_numbers_are_not(first: str, second: str) -> None:
    assert keys(first) != keys(second)


@pytest.mark.parametrize("text", ["1.2.3", "1,23,4", "01.02", "1,234,56", "1.234.567,8.9"])
def test_what_is_no_number_or_a_plain_one(text: str) -> None:
    assert number_key(text) in (None, "01.02")


@hold
@given(cents=st.integers(0, 10**11), style=st.sampled_from([",.", ".,", "'.", " ,", "\u00a0,"]))
def test_every_amount_in_every_style(cents: int, style: str) -> None:
    group, point = style
    if group == " ":
        group = "\u202f"
    whole, rest = divmod(cents, 100)
    written = f"{whole:,}".replace(",", group) + f"{point}{rest:02}"
    expected = f"{whole}.{rest:02}".rstrip("0").rstrip(".")
    assert keys(written) == [expected]
    assert is_number(expected)


@hold
@given(text=st.text())
def test_tokens_stand_in_the_text_and_in_order(text: str) -> None:
    end = 0
    for token in tokenize(text):
        assert token.key
        assert end <= token.start < token.end <= len(text)
        is_number(token.key)
        end = token.end
