"""dates: a date, in any of two dozen written forms and inside a sentence, becomes ISO 8601."""

import datetime
import random
import re

from demo_tasks.task import Example, Split, Task, words

TEST_YEARS = (1957, 1963, 1976, 1984, 1991, 1998, 2003, 2008, 2017, 2026, 2035, 2042)
FIRST_YEAR, LAST_YEAR = 1950, 2049  # a two-digit year is unambiguous within a century

MONTHS = words(
    """
    January, February, March, April, May, June, July, August, September, October, November,
    December
    """
)
ROMAN = words("I, II, III, IV, V, VI, VII, VIII, IX, X, XI, XII")
ONES = words("zero, one, two, three, four, five, six, seven, eight, nine")
TEENS = words(
    """
    ten, eleven, twelve, thirteen, fourteen, fifteen, sixteen, seventeen, eighteen, nineteen
    """
)
TENS = words(
    """
    _, ten, twenty, thirty, forty, fifty, sixty, seventy, eighty, ninety
    """
)
ORDINALS = words(
    """
    first, second, third, fourth, fifth, sixth, seventh, eighth, ninth, tenth, eleventh,
    twelfth, thirteenth, fourteenth, fifteenth, sixteenth, seventeenth, eighteenth,
    nineteenth, twentieth, twenty-first, twenty-second, twenty-third, twenty-fourth,
    twenty-fifth, twenty-sixth, twenty-seventh, twenty-eighth, twenty-ninth, thirtieth,
    thirty-first
    """
)

# Fields of one date: d, dd, ord (3rd), ordinal (third); m, mm, roman, mon, month; yyyy, yy, year
# (in words); wd, weekday. Dots and roman numerals put the day first, slashes the month, as said
# in the instruction.
FORMS = [
    "{month} {d}, {yyyy}",
    "{month} {ord}, {yyyy}",
    "{d} {month} {yyyy}",
    "the {ord} of {month} {yyyy}",
    "{ord} {month}, {yyyy}",
    "{mon} {d} {yyyy}",
    "{mon}. {ord}, {yyyy}",
    "{dd}-{mon}-{yyyy}",
    "{d} {mon} '{yy}",
    "{month} {d}, '{yy}",
    "{weekday}, {month} {ord}, {yyyy}",
    "{wd} {d} {mon} {yyyy}",
    "{weekday} the {ord} of {month}, {yyyy}",
    "{d}.{m}.{yyyy}",
    "{dd}.{mm}.{yyyy}",
    "{dd}.{mm}.{yy}",
    "{m}/{d}/{yyyy}",
    "{mm}/{dd}/{yyyy}",
    "{m}/{d}/{yy}",
    "{yyyy}/{mm}/{dd}",
    "{yyyy} {month} {d}",
    "{yyyy}{mm}{dd}",
    "{d}-{roman}-{yyyy}",
    "{d}. {roman}. {yyyy}",
    "{month} the {ordinal}, {yyyy}",
    "the {ordinal} of {month}, {year}",
    "{month} {ordinal}, {year}",
]
CONTEXTS: dict[Split, list[str]] = {
    "train": [
        "The invoice {n} was issued on {date}.",
        "Born {date}, the second of {small} children",
        "Please move the meeting from room {n} to {date}.",
        "Contract signed {date} by {small} parties",
        "He moved here on {date} with {small} suitcases.",
        "valid until {date}",
        "Order {n}: delivery expected {date}",
        "We met on {date}, at gate {small}.",
        "the shop opened its doors on {date}",
        "Flight {n} leaves on {date} in the evening.",
        "Last updated: {date}",
        "On {date} the river rose by {small} metres.",
    ],
    "test": [
        "Ticket {n} was closed on {date}.",
        "The bridge, {small} years in the making, opened on {date}.",
        "Passport no. {n}, expires {date}",
        "Her first concert took place on {date} before {n} people.",
        "due {date}",
        "Payment of {n} euros received {date}, thank you.",
    ],
}


def _ordinal_digits(day: int) -> str:
    suffix = "th" if 10 <= day % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{suffix}"


def _below_hundred(number: int) -> str:
    if number < 10:
        return ONES[number]
    if number < 20:
        return TEENS[number - 10]
    return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")


def _year_words(year: int) -> str:
    century, rest = divmod(year, 100)
    if century == 20 and rest < 10:
        return "two thousand" + (f" and {ONES[rest]}" if rest else "")
    return f"{_below_hundred(century)} {_below_hundred(rest)}"


def make(rng: random.Random, split: Split) -> Example:
    """Draw one date, alone or in a sentence."""
    train_years = [y for y in range(FIRST_YEAR, LAST_YEAR + 1) if y not in TEST_YEARS]
    year = rng.choice(train_years if split == "train" else TEST_YEARS)
    date = datetime.date(year, 1, 1) + datetime.timedelta(days=rng.randrange(365))
    month, weekday = MONTHS[date.month - 1], date.strftime("%A")
    written = rng.choice(FORMS).format(
        d=date.day,
        dd=f"{date.day:02}",
        ord=_ordinal_digits(date.day),
        ordinal=ORDINALS[date.day - 1],
        m=date.month,
        mm=f"{date.month:02}",
        roman=ROMAN[date.month - 1],
        mon=month[:3],
        month=month,
        yyyy=year,
        yy=f"{year % 100:02}",
        year=_year_words(year),
        wd=weekday[:3],
        weekday=weekday,
    )
    context = rng.choice(CONTEXTS[split]) if rng.random() < 0.6 else "{date}"
    text = context.format(date=written, n=rng.randint(100, 9999), small=rng.randint(2, 30))
    return Example(text, date.isoformat())


def score(output: str, example: Example) -> bool:
    """Whether the first ISO date of the output is the one meant."""
    found = re.search(r"\d{4}-\d{2}-\d{2}", output)
    return bool(found) and found.group() == example.answer


TASK = Task(
    name="dates",
    summary="A date in any of 27 written forms, alone or in a sentence, becomes ISO 8601.",
    instruction=(
        "Write the date in the input as YYYY-MM-DD. Numbers with dots are day.month.year, numbers "
        "with slashes are month/day/year, Roman numerals are months, and two-digit years lie "
        "between 1950 and 2049. Answer with the date only."
    ),
    max_new_tokens=24,
    make=make,
    score=score,
)
