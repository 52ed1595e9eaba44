"""What is stripped from an answer, and above all what isn't."""

from __future__ import annotations

import pytest

from turret_server.pipeline.documents.tasks import TASKS, parse


def span(raw: str) -> str:
    return parse(TASKS["docvqa"], raw).text


# Published code strips the characters "</s>" from the ends: "cars" loses its s.
@pytest.mark.parametrize("text", ["cars", "<b>", "s/s", "</s>", "class", "A/S", "> 5", "", "."])
def test_words_keep_their_letters(text: str) -> None:
    assert span(text) == text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ('"Moby Dick"', "Moby Dick"),
        ("'Moby Dick'", "Moby Dick"),
        ("“Moby Dick”", "Moby Dick"),
        ("«Moby Dick»", "Moby Dick"),
        ("„Moby Dick“", "Moby Dick"),
        ("「雪国」", "雪国"),
        ('"Moby Dick".', "Moby Dick"),
        ('"Moby Dick."', "Moby Dick."),
        ('"Lisbon."', "Lisbon"),
    ],
)
def test_quotes_around_an_answer_go(raw: str, text: str) -> None:
    assert span(raw) == text


@pytest.mark.parametrize(
    "text", ['"A" and "B"', "5'10\"", "'tis", "the boys'", '12"', "'a' or 'b'", '"', "'", "‘90s"]
)
def test_quotes_within_an_answer_stay(text: str) -> None:
    assert span(text) == text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("Paris.", "Paris"),
        ("Yes.", "Yes"),
        ("The Federal Republic of Germany.", "The Federal Republic of Germany"),
        ("12 March 1998.", "12 March 1998"),
        ("東京。", "東京"),
    ],
)
def test_a_final_stop_goes(raw: str, text: str) -> None:
    assert span(raw) == text


@pytest.mark.parametrize(
    "text", ["Acme Inc.", "at 5 p.m.", "the U.S.", "J. Smith Jr.", "and so on...", "...", "a.b."]
)
def test_a_stop_that_may_be_the_answers_own_stays(text: str) -> None:
    assert span(text) == text


def test_free_answers_stay_as_they_are() -> None:
    assert parse(TASKS["question"], ' "It is Paris." ').text == '"It is Paris."'
