"""The lines of an answer, and the values of its JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turret_server.pipeline.documents.cite.parts import parts


def found(answer: str) -> list[tuple[str, str]]:
    """Each part's text, and what stands in the answer there."""
    return [(part.text, answer[part.places[0] : part.places[-1]]) for part in parts(answer)]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("one", ["one"]),
        ("one\n\ntwo", ["one", "two"]),
        ("", []),
        ('{"a": "x", "b": [1.5, -2e3, null, true, {"c" : ""}]}', ["x", "1.5", "-2e3", ""]),
        ('["key: value", "k"]', ["key: value", "k"]),
        ('{"a": "x"', ['{"a": "x"']),
        ("[1] says so", ["[1] says so"]),
        ('"text"', ['"text"']),
    ],
)
def test_parts_stand_in_the_answer(answer: str, expected: list[str]) -> None:
    assert found(answer) == [(text, text) for text in expected]


def test_escapes_are_read_and_keep_their_places() -> None:
    answer = r'["a\"b\u00e9\ud83d\ude00c"]'
    [part] = parts(answer)
    assert part.text == 'a"bé😀c'
    assert [answer[part.places[at] : part.places[at + 1]] for at in range(6)] == [
        "a", r"\"", "b", r"\u00e9", r"\ud83d\ude00", "c",
    ]  # fmt: skip


@settings(derandomize=True, deadline=None, max_examples=300)
@given(values=st.lists(st.text()), ascii_only=st.booleans())
def test_any_text_comes_back(values: list[str], ascii_only: bool) -> None:
    answer = json.dumps(
        {str(at): value for at, value in enumerate(values)}, ensure_ascii=ascii_only
    )
    read = list(parts(answer)) if values else []
    assert [part.text for part in read] == values
    for part in read:
        assert len(part.places) == len(part.text) + 1
        assert list(part.places) == sorted(part.places)


@pytest.mark.parametrize("answer", ["[" * 100_000, '{"a":' * 50_000, '["' + "\\" * 99_999])
def test_hostile_json_is_text(answer: str) -> None:
    assert found(answer) == [(answer, answer)]
