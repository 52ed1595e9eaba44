"""Tables that models write, well and badly."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turret_server.pipeline.documents.tasks import TASKS, Answer, parse

ROWS = [["Item", "Price"], ["Bolt, long", "1,250.00"]]
CSV = 'Item,Price\n"Bolt, long","1,250.00"'


@pytest.mark.parametrize(
    "raw",
    [
        CSV,
        CSV.replace("\n", "\r\n"),
        f"```csv\n{CSV}\n```",
        f"Here is the table:\n```csv\n{CSV}\n```\nThat is all.",
        'Item, Price\n"Bolt, long", "1,250.00"\n\n',
        "Item;Price\nBolt, long;1,250.00",
        "Item\tPrice\nBolt, long\t1,250.00",
        "| Item | Price |\n|---|---:|\n| Bolt, long | 1,250.00 |",
        f"Answer:\n{CSV}",
    ],
)
def test_rows_are_read_and_written_as_csv(raw: str) -> None:
    assert parse(TASKS["table-csv"], raw) == Answer(CSV, ROWS)


def test_rows_of_different_lengths_stay() -> None:
    assert parse(TASKS["table-csv"], "a,b\n1\n,2,3").value == [["a", "b"], ["1"], ["", "2", "3"]]


@pytest.mark.parametrize("raw", ["", "\n", ",,", "x" * 200_000])
def test_what_is_no_table_stays_text(raw: str) -> None:
    assert parse(TASKS["table-csv"], raw) == Answer(raw.strip())


CELL = st.text(st.characters(blacklist_categories=["C", "Z"]), min_size=1, max_size=8)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(rows=st.lists(st.lists(CELL, min_size=2, max_size=4), min_size=1, max_size=4))
def test_what_is_written_reads_the_same(rows: list[list[str]]) -> None:
    rows[0] = ["head", *rows[0]]
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows(rows)
    answer = parse(TASKS["table-csv"], out.getvalue())
    assert answer.value == rows
    assert list(csv.reader(io.StringIO(answer.text))) == rows
