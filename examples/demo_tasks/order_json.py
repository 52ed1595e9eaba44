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
        grinder, bike bell, tea strainer, door mat, sofa, stool, curtain, carpet, mirror, vase,
        basket, bucket, broom, mop, kettle, pan, pot, spoon, fork, plate, bowl, tray, jar, cup,
        ladle, peeler, toaster, blender, scooter, helmet, racket, skateboard, tent, sleeping bag,
        compass, whistle, rope, torch, battery, cable, charger, keyboard, monitor, headset, speaker,
        camera, tripod, printer, pen, pencil, eraser, ruler, stapler, folder, envelope, sticker,
        puzzle, doll, kite, drum, guitar, violin, flute, bracelet, necklace, earring, brooch, purse,
        wallet, suit, skirt, blouse, coat, gown, robe, pyjama top, swimsuit, bonnet, visor, toy car,
        picture frame, bread knife, soap dish, shower curtain, bird feeder, watering can, baby seat
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
        silver, dark green, scarlet, crimson, ivory, cream, charcoal, lime, mint, coral, salmon,
        indigo, violet, magenta, cyan, aqua, bronze, copper, tan, khaki, mustard, plum, rust, sand,
        slate, peach, amber, burgundy, fuchsia, light green, light grey, pale pink, pale yellow,
        dark red, dark blue, bright red, bright green, deep purple, off-white
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


# Parts of invented nouns and towns: from word lists alone a small model learns to choose, from
# words that it has never seen it learns to copy.
ONSETS = words("b, bl, br, c, cl, d, dr, f, fl, g, gr, h, j, k, l, m, n, p, pr, r, s, st, t, tr, v")
NUCLEI = words("a, e, i, o, u, ai, ea, ou")
CODAS = words("b, ck, g, l, ll, m, n, nd, ng, p, r, rn, rt, st, t, tch, x")


def _invented(rng: random.Random) -> str:
    syllables = [rng.choice(ONSETS) + rng.choice(NUCLEI) for _ in range(rng.randint(1, 3))]
    return "".join(syllables) + rng.choice(CODAS)


def _item(rng: random.Random, split: Split) -> str:
    if split == "test" or rng.random() < 0.7:
        return rng.choice(ITEMS[split])
    return _invented(rng)


def _city(rng: random.Random, split: Split) -> str:
    if split == "test" or rng.random() < 0.5:
        return rng.choice(CITIES[split])
    name = _invented(rng).capitalize()
    return rng.choice([name, name, f"San {name}", f"{name} City", f"Port {name}", f"El {name}"])


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
    item = _item(rng, split)
    quantity, spoken = _quantity(rng)
    size = rng.choice([None, *SIZES]) if rng.random() < 0.9 else None
    color = rng.choice(COLORS[split]) if rng.random() < 0.7 else None
    city = _city(rng, split) if rng.random() < 0.75 else None
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
