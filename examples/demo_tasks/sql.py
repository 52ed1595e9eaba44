"""sql: a question about one small table becomes a query; running it tells whether it is right."""

import contextlib
import random
import re
import sqlite3
from collections.abc import Sequence

from demo_tasks.sql_tables import TABLES, Table
from demo_tasks.task import Example, Split, Task

_ROWS = 60
_STEPS_LIMIT = 1_000_000  # of SQLite's virtual machine: a query of a sick model must end


def _spoken(column: str) -> str:
    return column.replace("_", " ")


def _condition(rng: random.Random, table: Table) -> tuple[str, str]:
    """Return one condition in words and in SQL."""
    if rng.random() < 0.5:
        column = rng.choice(list(table.words))
        value = rng.choice(table.words[column])
        words = rng.choice(
            [
                f"whose {_spoken(column)} is {value}",
                f"with {_spoken(column)} {value}",
                f"where the {_spoken(column)} is {value}",
            ]
        )
        return words, f"{column} = '{value}'"
    column = rng.choice(list(table.numbers))
    low, high = table.numbers[column]
    margin = max(1, (high - low) // 5)  # so that some rows lie on either side
    bound = rng.randint(low + margin, high - margin)
    said = _spoken(column)
    match rng.randrange(5):
        case 0:
            return rng.choice(
                [f"with {said} above {bound}", f"whose {said} is more than {bound}"]
            ), f"{column} > {bound}"
        case 1:
            return rng.choice(
                [f"with {said} below {bound}", f"whose {said} is less than {bound}"]
            ), f"{column} < {bound}"
        case 2:
            return f"with {said} of at least {bound}", f"{column} >= {bound}"
        case 3:
            return f"with {said} of at most {bound}", f"{column} <= {bound}"
        case _:
            top = rng.randint(bound + 1, high)
            return f"with {said} between {bound} and {top}", f"{column} BETWEEN {bound} AND {top}"


def _where(rng: random.Random, table: Table, chance: float) -> tuple[str, str]:
    """Return nothing, one condition or two, in words and as a WHERE clause."""
    if rng.random() > chance:
        return "", ""
    words, sql = _condition(rng, table)
    if rng.random() < 0.45:
        more, second = _condition(rng, table)
        if second.split()[0] != sql.split()[0]:
            return f" {words} and {more}", f" WHERE {sql} AND {second}"
    return f" {words}", f" WHERE {sql}"


def _question(rng: random.Random, table: Table) -> tuple[str, str]:
    t, key = table.name, table.key
    word, number = rng.choice(list(table.words)), rng.choice(list(table.numbers))
    match rng.randrange(8):
        case 0:
            words, where = _where(rng, table, 0.9)
            return f"How many {t}{words} are there?", f"SELECT COUNT(*) FROM {t}{where}"
        case 1:
            words, where = _where(rng, table, 1.0)
            verb = rng.choice(["List", "Show", "Give me"])
            return f"{verb} the {_spoken(key)} of {t}{words}.", f"SELECT {key} FROM {t}{where}"
        case 2 | 3:
            words, where = _where(rng, table, 0.6)
            said, function = rng.choice(
                [("average", "AVG"), ("highest", "MAX"), ("lowest", "MIN"), ("total", "SUM")]
            )
            return (
                f"What is the {said} {_spoken(number)} of {t}{words}?",
                f"SELECT {function}({number}) FROM {t}{where}",
            )
        case 4:
            words, where = _where(rng, table, 0.4)
            count = rng.randint(2, 9)
            said, order = rng.choice([("highest", "DESC"), ("lowest", "ASC")])
            return (
                f"Which {count} {t}{words} have the {said} {_spoken(number)}?",
                f"SELECT {key} FROM {t}{where} ORDER BY {number} {order} LIMIT {count}",
            )
        case 5:
            return (
                f"How many {t} are there for each {_spoken(word)}?",
                f"SELECT {word}, COUNT(*) FROM {t} GROUP BY {word}",
            )
        case 6:
            said, function = rng.choice([("average", "AVG"), ("total", "SUM"), ("highest", "MAX")])
            return (
                f"What is the {said} {_spoken(number)} of {t} for each {_spoken(word)}?",
                f"SELECT {word}, {function}({number}) FROM {t} GROUP BY {word}",
            )
        case _:
            count = rng.randint(2, 25)
            return (
                f"Which values of {_spoken(word)} have more than {count} {t}?",
                f"SELECT {word} FROM {t} GROUP BY {word} HAVING COUNT(*) > {count}",
            )


def make(rng: random.Random, split: Split) -> Example:
    """Draw a table and a question about it."""
    table = rng.choice(TABLES[split])
    question, query = _question(rng, table)
    return Example(f"Table {table.schema}\n{question}", query)


def filled(table: Table) -> sqlite3.Connection:
    """Return an in-memory database that holds `table` with seeded rows.

    Numbers do not repeat within a column while its range allows, so that no "top n" has ties.
    """
    rng = random.Random(table.name)
    columns: list[Sequence[str | int]] = [[f"{table.key} {i}" for i in range(_ROWS)]]
    columns += [rng.choices(values, k=_ROWS) for values in table.words.values()]
    for low, high in table.numbers.values():
        span = range(low, high + 1)
        distinct = len(span) >= _ROWS
        columns.append(rng.sample(span, _ROWS) if distinct else rng.choices(span, k=_ROWS))
    database = sqlite3.connect(":memory:")
    database.execute(f"CREATE TABLE {table.schema}")
    marks = ", ".join("?" * len(columns))
    database.executemany(f"INSERT INTO {table.name} VALUES ({marks})", zip(*columns, strict=True))
    return database


def query_in(output: str) -> str:
    """Return the first query of an output: code fences, remarks around it and ";" go."""
    fenced = re.search(r"```(?:sql)?\s*(.*?)(?:```|$)", output, re.DOTALL | re.IGNORECASE)
    text = fenced.group(1) if fenced else output
    found = re.search(r"\bSELECT\b[^;]*", text, re.DOTALL | re.IGNORECASE)
    return found.group().strip() if found else ""


def score(output: str, example: Example) -> bool:
    """Whether the output's query returns what the right one returns.

    Rows count in order where the right query sorts, else as a multiset. This is execution
    accuracy, the usual measure for text to SQL: another way to write the query is no mistake.
    """
    query = query_in(output)
    name = example.prompt.split("(")[0].removeprefix("Table ")
    table = next(t for tables in TABLES.values() for t in tables if t.name == name)
    if not query:
        return False
    with contextlib.closing(filled(table)) as database:
        wanted = database.execute(example.answer).fetchall()
        database.set_progress_handler(lambda: 1, _STEPS_LIMIT)
        try:
            found = database.execute(query).fetchall()
        except sqlite3.Error:
            return False
    if "ORDER BY" not in example.answer:
        wanted, found = sorted(wanted, key=repr), sorted(found, key=repr)
    return found == wanted


TASK = Task(
    name="sql",
    summary="A question about one small table becomes a SQL query.",
    instruction=(
        "Write one SQL query that answers the question about the table. Answer with the query only."
    ),
    max_new_tokens=64,
    make=make,
    score=score,
)
