"""Forms, receipts and articles."""

from __future__ import annotations

from bench.layout.sheet import Sheet, advance
from bench.layout.tables import put_table, put_title
from bench.layout.vocabulary import Vocabulary


def form(sheet: Sheet) -> None:
    """Keys and values in two columns, each key with its value beside it."""
    vocabulary = Vocabulary(sheet.rng)
    top = put_title(sheet, vocabulary)
    size = 22.0
    for block in range(3):
        for row in range(5):
            baseline = top + (2 + block * 10 + row * 1.7) * size
            for left, stop in ((80.0, 330.0), (660.0, 880.0)):
                if row == 4 and left > 80.0:
                    continue  # the columns are not equally long
                key = [*vocabulary.words(sheet.rng.randint(1, 2))]
                key[-1] += ":"
                value = [vocabulary.date(), vocabulary.code(), vocabulary.amount(4)]
                words = [sheet.rng.choice(value)]
                if sheet.rng.random() < 0.4:
                    words = [vocabulary.filler().capitalize() for _ in range(2)]
                sheet.put(key, left, baseline, size)
                sheet.put(words, stop, baseline, size)
                cell = len(sheet.truth.cells)
                sheet.truth.cells.extend([tuple(key), tuple(words)])
                sheet.truth.relations.add((cell, cell + 1, "right"))
                sheet.truth.loose.add(cell + 1)
                sheet.truth.order.extend([tuple(key), tuple(words)])


def receipt(sheet: Sheet) -> None:
    """A narrow strip: centred lines, things and prices far apart, a sum."""
    vocabulary = Vocabulary(sheet.rng)
    sheet.width, sheet.height, size = 560.0, 1300.0, 22.0
    for i in range(4):
        line = [word.capitalize() for word in vocabulary.words(2)] + [vocabulary.code()]
        sheet.put(line, sheet.width / 2, 60.0 + i * 1.4 * size, size, "centre")
        sheet.truth.order.append(tuple(line))
    rows: list[list[list[list[str]] | None]] = []
    for _ in range(16):
        rows.append([[vocabulary.words(sheet.rng.randint(1, 3))], [[vocabulary.amount(3)]]])
    widest = max(advance(" ".join(row[0][0])) for row in rows if row[0] is not None)
    price = max(advance(row[1][0][0]) for row in rows if row[1] is not None)
    gap = (sheet.width - 80.0) / size - widest - price
    end = put_table(sheet, rows, ["left", "right"], 210.0, size, max(gap, 1.5), 1.4, left=40.0).end
    line = [word.capitalize() for word in vocabulary.words(3)]
    sheet.put(line, sheet.width / 2, end + 2 * size, size, "centre")
    sheet.truth.order.append(tuple(line))


def article(sheet: Sheet) -> None:
    """A title over two justified columns, each to be read to its end."""
    vocabulary = Vocabulary(sheet.rng)
    put_title(sheet, vocabulary, 36.0)
    size, width = 20.0, 515.0
    for left in (80.0, 645.0):
        baseline = 190.0
        for paragraph in (9, 7, 12):
            for i in range(paragraph):
                words: list[str] = []
                while advance(" ".join(words)) * size < 0.86 * width:
                    words.append(vocabulary.filler())
                last = i == paragraph - 1
                words = words[: len(words) // 2] if last else words
                room = width - sum(map(advance, words)) * size
                space = 0.28 if last else room / (len(words) - 1) / size
                sheet.put(words, left, baseline, size, space=space)
                sheet.truth.order.append(tuple(words))
                baseline += 1.25 * size
            baseline += 0.8 * size
