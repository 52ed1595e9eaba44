"""order-json: a shop order in free words becomes one JSON object with six fixed keys."""

import json
import random

from demo_tasks.task import Example, Split, Task, words

ITEMS: dict[Split, list[str]] = {
    "train": words(
        """
        hoodie, jacket, shirt, sweater, raincoat, apron, cap, beanie, belt, glove, sock, sandal,
        boot, sneaker, backpack, umbrella, towel, blanket, pillow, mug, bottle, notebook, lamp,
        chair, desk, poster, candle, watch, brush, box, bench, dress, cherry tree, puppy collar,
        yoga mat, phone case, travel pouch, desk fan, lunch box, wine glass, key ring, coffee
        grinder, bike bell, tea strainer, door mat
        """
    ),
    "test": words(
        """
        kimono, vest, tunic, poncho, slipper, bandana, suitcase, cushion, teapot, whisk,
        hammock, lantern, clutch, leash, cutting board, garden hose, fishing rod, flower pot,
        canary, jersey
        """
    ),
}
COLORS: dict[Split, list[str]] = {
    "train": words(
        """
        red, blue, green, black, white, yellow, purple, pink, grey, brown, navy, beige, teal,
        silver, dark green
        """
    ),
    "test": words("orange, maroon, turquoise, olive, gold, light blue, lavender"),
}
CITIES: dict[Split, list[str]] = {
    "train": words(
        """
        Boston, Chicago, Denver, Seattle, Austin, Toronto, Montreal, London, Leeds, Glasgow,
        Dublin, Paris, Lyon, Berlin, Hamburg, Munich, Vienna, Zurich, Geneva, Madrid, Seville,
        Lisbon, Porto, Rome, Milan, Naples, Athens, Warsaw, Prague, Budapest, Oslo, Stockholm,
        Helsinki, Copenhagen, Tokyo, Osaka, Seoul, Mumbai, Delhi, Sydney, Perth, Auckland,
        Cairo, Nairobi, Lagos, Lima, Bogota, San Diego, New York, Los Angeles, Cape Town, Buenos
        Aires
        """
    ),
    "test": words(
        """
        Portland, Atlanta, Nashville, Calgary, Bristol, Cork, Marseille, Cologne, Graz,
        Valencia, Turin, Krakow, Bergen, Kyoto, Bangalore, Melbourne, Casablanca, Accra, Quito,
        San Francisco, Las Vegas, Salt Lake City, Tel Aviv
        """
    ),
}
NAMES: dict[Split, list[str]] = {
    "train": words(
        """
        Maria, Tom, Aisha, Ken, Lena, Omar, Sofia, Raj, Emma, Luis, Nina, Paul, Grace, Ivan
        """
    ),
    "test": words("Hannah, Diego, Yuki, Fatima, Oscar, Priya, Felix, Chloe"),
}
SIZES = {
    "S": ["small", "S", "size S"],
    "M": ["medium", "M", "size M", "medium-sized"],
    "L": ["large", "L", "size L"],
    "XL": ["extra large", "XL", "extra-large", "size XL"],
}
NUMBER_WORDS = words(
    """
    one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen,
    fourteen, fifteen, sixteen, seventeen, eighteen, nineteen, twenty
    """
)
OPENINGS = [
    "Hi, I'd like",
    "Please send me",
    "Could I get",
    "We need",
    "I want to order",
    "Can you put me down for",
    "Order for {name}:",
    "Hello, {name} here. I'll take",
    "Hey, it's {name}, please add",
    "Looking to buy",
    "My sister {name} wants",
    "I was thinking of",
]
DESTINATIONS = [
    " shipped to {city}",
    ", to {city}",
    ", delivery to {city}",
    ". Ship to {city}",
    "; send it to {city}",
    " for our office in {city}",
    ". We are based in {city}",
    ". Deliver to {city}",
]
EXPRESS = [
    ", express please",
    " with express shipping",
    ". It's urgent",
    ". I need it by tomorrow",
    ", as fast as you can",
    ". Rush delivery",
]
NO_RUSH = ["", "", "", ". No rush", ". Standard shipping is fine", ", take your time"]
ENDINGS = ["", "", "", ". Thanks!", ". My budget is {price} dollars", ". Cheers, {name}", " please"]


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _quantity(rng: random.Random) -> tuple[int, str]:
    match rng.randrange(10):
        case 0:
            return 1, rng.choice(["a", "one", "a single", "1", "just one"])
        case 1:
            return rng.choice(
                [(2, "a pair of"), (2, "a couple of"), (6, "half a dozen"), (12, "a dozen")]
            )
        case 2 | 3 | 4 | 5:
            number = rng.randint(2, len(NUMBER_WORDS))
            return number, NUMBER_WORDS[number - 1]
        case _:
            number = rng.randint(2, 99)
            return number, str(number)


def _ordered(rng: random.Random, quantity: str, noun: str, size: str, color: str) -> str:
    """Say what is ordered; `size` and `color` may be empty."""
    before = " ".join(word for word in (size, color, noun) if word)
    swapped = " ".join(word for word in (color, size, noun) if word)
    after = ", ".join(word for word in (size, color) if word)
    colored = " ".join(word for word in (color, noun) if word)
    forms = [f"{quantity} {before}", f"{quantity} {before}", f"{quantity} {swapped}"]
    if after:
        forms += [f"{quantity} {noun} ({after})", f"{quantity} {noun}, {after}"]
    if size:
        forms.append(f"{quantity} {colored} in {size}")
    return rng.choice(forms)


def make(rng: random.Random, split: Split) -> Example:
    """Draw one order."""
    item = rng.choice(ITEMS[split])
    quantity, spoken = _quantity(rng)
    size = rng.choice([None, *SIZES]) if rng.random() < 0.9 else None
    color = rng.choice(COLORS[split]) if rng.random() < 0.7 else None
    city = rng.choice(CITIES[split]) if rng.random() < 0.75 else None
    express = rng.random() < 0.4
    noun = item if quantity == 1 else _plural(item)
    size_word = rng.choice(SIZES[size]) if size else ""
    text = rng.choice(OPENINGS) + " " + _ordered(rng, spoken, noun, size_word, color or "")
    clauses = [
        rng.choice(DESTINATIONS) if city else "",
        rng.choice(EXPRESS if express else NO_RUSH),
    ]
    if rng.random() < 0.25:
        clauses.reverse()
    text += "".join(clauses) + rng.choice(ENDINGS)
    text = text.format(name=rng.choice(NAMES[split]), city=city, price=rng.randint(10, 300))
    if not text.endswith("!") and rng.random() < 0.7:
        text += "."
    order = {
        "item": item,
        "quantity": quantity,
        "size": size,
        "color": color,
        "city": city,
        "express": express,
    }
    return Example(text, json.dumps(order))


def score(output: str, example: Example) -> bool:
    """Whether the output's first JSON object equals the order in every key, type and value."""
    start = output.find("{")
    if start < 0:
        return False
    try:
        found, _ = json.JSONDecoder().raw_decode(output[start:])
    except ValueError:
        return False
    wanted = json.loads(example.answer)
    # bool equals int in Python (True == 1), not here.
    return found == wanted and all(type(found[key]) is type(wanted[key]) for key in wanted)


TASK = Task(
    name="order-json",
    summary="A shop order in free words becomes a JSON object with six fixed keys.",
    instruction=(
        "Turn the order into one JSON object with the keys item (singular), quantity (number), "
        'size ("S", "M", "L", "XL" or null), color (or null), city (or null) and express (true '
        "or false). Answer with the JSON object only."
    ),
    max_new_tokens=72,
    make=make,
    score=score,
)
