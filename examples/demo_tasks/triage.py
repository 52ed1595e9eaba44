"""triage: a customer's message becomes the one word that says which team should read it."""

import random

from demo_tasks.task import Example, Split, Task, words

PRODUCTS: dict[Split, list[str]] = {
    "train": words(
        """
        headphones, desk lamp, coffee maker, router, tablet, office chair, backpack, camera,
        keyboard, vacuum cleaner, smart watch, printer, bicycle helmet, toaster, monitor, tent,
        blender, phone case, electric kettle, speaker
        """
    ),
    "test": words(
        """
        microwave, e-reader, rice cooker, sewing machine, webcam, hair dryer, drone, air purifier,
        mattress, label maker
        """
    ),
}
# Nothing that a customer of the test says is said in training.
REASONS: dict[str, dict[Split, list[str]]] = {
    "billing": {
        "train": [
            "I was charged twice for the {p}",
            "the invoice for my {p} shows the wrong amount",
            "my credit card was billed although I paid with PayPal",
            "why is there a fee of {n} dollars on my statement",
            "please send me a receipt for the {p}",
            "the discount code was not applied to the price of the {p}",
            "you took {n} dollars from my bank account without asking",
            "the tax on my invoice is wrong",
            "I paid {n} dollars but the bill says that payment is due",
            "can I pay for the {p} in instalments",
            "my payment was declined three times",
            "the amount on my card does not match the order total",
        ],
        "test": [
            "my bank shows two payments for one {p}",
            "the bill is {n} dollars too high",
            "I need an invoice with my company's name on it",
            "you charged me {n} dollars for a {p} that was on sale",
            "my card was charged before I confirmed",
        ],
    },
    "delivery": {
        "train": [
            "my {p} has not arrived yet",
            "the tracking page has not changed for {n} days",
            "the courier left the {p} in the rain",
            "when will my parcel get here",
            "the package was delivered to the wrong address",
            "my shipment has been stuck in customs for {n} days",
            "the driver did not ring the bell and took the {p} away",
            "I would like the {p} to be shipped to my office instead",
            "the tracking number you sent does not work",
            "half of the boxes in my shipment are missing",
            "is it possible to get the {p} delivered on Saturday",
            "the parcel says delivered, but there is nothing at my door",
        ],
        "test": [
            "I have waited {n} days for the {p} and it is still not here",
            "the courier says that my parcel is lost",
            "which day will the {p} be delivered",
            "my package went to a neighbour that I do not know",
            "tracking says that the {p} is still in the warehouse",
        ],
    },
    "returns": {
        "train": [
            "I want to send the {p} back",
            "how do I return a {p} that I do not like",
            "I would like to exchange the {p} for a bigger one",
            "please send me a return label for the {p}",
            "the {p} is the wrong colour and I want to swap it",
            "can I bring the {p} back after {n} days",
            "I changed my mind and want to give the {p} back",
            "I returned the {p} {n} days ago and have not got my refund",
            "is the {p} still within the return period",
            "the {p} does not fit, please take it back",
            "I would like a refund for the {p}, it is unopened",
            "where do I send a {p} that I want to exchange",
        ],
        "test": [
            "what is your policy for returning a {p}",
            "I opened the box, can I still return the {p}",
            "I want my money back and you can have the {p} back",
            "please exchange my {p} for the black one",
            "I need a label so that I can send back the {p}",
        ],
    },
    "technical": {
        "train": [
            "the {p} does not turn on",
            "my {p} stopped working after {n} days",
            "the {p} makes a strange noise when I use it",
            "the app cannot find my {p}",
            "how do I update the firmware of the {p}",
            "the {p} overheats after {n} minutes",
            "a red light blinks on the {p} and nothing happens",
            "the {p} will not connect to the wireless network",
            "the battery of the {p} is empty after {n} minutes",
            "I get error code {n} on the display",
            "the {p} freezes and has to be restarted",
            "the button on my {p} is broken and does not react",
        ],
        "test": [
            "my {p} shows error {n} and shuts down",
            "the {p} is broken, it will not start",
            "the {p} does not charge any more",
            "how can I reset the {p} to its factory settings",
            "the software of the {p} crashes again and again",
        ],
    },
    "account": {
        "train": [
            "I forgot my password",
            "I cannot log in any more",
            "please change the email address of my profile",
            "how do I delete my account",
            "my account was locked after {n} attempts",
            "I did not get the code to verify my login",
            "someone else has signed in with my name",
            "please remove me from the newsletter",
            "I want to change my user name",
            "I have two profiles and would like to merge them",
            "the link to reset my password has expired",
            "how do I turn on two-factor login",
        ],
        "test": [
            "my password is not accepted since {n} days ago",
            "please close my account and delete my data",
            "I have a new email address and cannot sign in with the old one",
            "I think that my account was hacked",
            "the login page does not send me a code",
        ],
    },
    "sales": {
        "train": [
            "do you have the {p} in green",
            "what is the difference between the two models of the {p}",
            "is there a discount if I order {n} of the {p}",
            "will the {p} be in stock again soon",
            "which {p} would you recommend for a beginner",
            "does the {p} come with a warranty of two years",
            "could you make me an offer for {n} pieces",
            "is the {p} suitable for children",
            "are you going to sell the new model of the {p}",
            "how heavy is the {p} and how big is it",
            "I am thinking of buying a {p}, is it loud",
            "do you sell gift cards",
        ],
        "test": [
            "I would like to buy {n} of the {p}, what is your best price",
            "does the {p} come in other colours",
            "when will the {p} be available again",
            "which {p} is best for a small flat",
            "is a {p} with more power on offer",
        ],
    },
}
OPENERS: dict[Split, list[str]] = {
    "train": ["", "", "Hello, ", "Hi there, ", "Good morning, ", "Dear team, ", "Quick question: "],
    "test": ["", "", "Hey, ", "Good evening, ", "Dear all, ", "To whom it may concern: "],
}
CLOSERS: dict[Split, list[str]] = {
    "train": ["", "", " Thanks!", " Please help.", " Order {o}.", " Best regards, Anna"],
    "test": ["", "", " Many thanks.", " What now?", " My order is {o}.", " Yours, Tom"],
}


def make(rng: random.Random, split: Split) -> Example:
    """Draw one message."""
    team = rng.choice(list(REASONS))
    reason = rng.choice(REASONS[team][split])
    opener, closer = rng.choice(OPENERS[split]), rng.choice(CLOSERS[split])
    text = opener + (reason if opener else reason[0].upper() + reason[1:]) + "." + closer
    return Example(
        text.format(
            p=rng.choice(PRODUCTS[split]), n=rng.randint(3, 90), o=rng.randint(10_000, 99_999)
        ),
        team,
    )


def score(output: str, example: Example) -> bool:
    """Whether the output is the right word and nothing else."""
    return output.strip() == example.answer


TASK = Task(
    name="triage",
    summary="A customer's message becomes the one word that says which team should read it.",
    instruction=(
        "Which team should read the customer's message? Answer with one word: billing, delivery, "
        "returns, technical, account or sales."
    ),
    max_new_tokens=12,
    make=make,
    score=score,
)
