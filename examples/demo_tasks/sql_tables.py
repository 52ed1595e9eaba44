"""The tables that the sql task asks about; "test" shares no table and no value with "train"."""

from dataclasses import dataclass

from demo_tasks.task import Split


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a column that tells rows apart, columns of words and columns of numbers."""

    name: str
    key: str
    words: dict[str, tuple[str, ...]]
    numbers: dict[str, tuple[int, int]]

    @property
    def schema(self) -> str:
        """The table as the prompt shows it: `staff(name, team, salary)`."""
        return f"{self.name}({', '.join([self.key, *self.words, *self.numbers])})"


def _tables(text: str) -> list[Table]:
    """Read `name | key | column=value/value, ... | column=low-high, ...`, two lines a table."""
    lines = text.strip().replace("\n    |", " |").splitlines()
    tables = []
    for line in lines:
        name, key, words, numbers = (part.strip() for part in line.split("|"))
        tables.append(
            Table(
                name=name,
                key=key,
                words={c: tuple(v.split("/")) for c, v in _pairs(words)},
                numbers={
                    c: (int(low), int(high))
                    for c, span in _pairs(numbers)
                    for low, high in [span.split("-")]
                },
            )
        )
    return tables


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(column, value) for column, _, value in (p.partition("=") for p in text.split(", "))]


_TRAIN = """
employees | name | department=Sales/Finance/Legal/Support, city=Berlin/Paris/Rome/Oslo
    | salary=2000-9000, age=18-65
orders | id | status=open/paid/cancelled/late, country=Spain/Japan/Brazil/Kenya
    | total=10-900, items=1-60
books | title | genre=crime/poetry/history/travel, language=English/French/Greek
    | pages=80-900, year=1950-2024
films | title | genre=drama/comedy/horror, studio=Apex/Lumen/Nordfilm
    | year=1960-2024, budget=100-9000
students | name | major=Physics/Law/Music/Biology, dorm=North/South/Lake
    | credits=0-180, age=17-40
flights | number | airline=Delta/Swiss/Qantas, destination=Tokyo/Cairo/Lima/Madrid
    | price=60-1900, distance=200-9000
cars | plate | maker=Volvo/Fiat/Honda/Skoda, color=red/black/white/blue
    | price=900-60000, mileage=0-200000
hotels | name | city=Vienna/Lisbon/Athens, chain=Astra/Bellevue/Comet
    | rooms=8-900, stars=1-5
patients | name | ward=A1/B2/C3, doctor=Meyer/Lopez/Chen
    | age=1-99, weight=4-140
products | name | category=toys/garden/kitchen/sport, supplier=Acme/Globex/Initech
    | price=1-900, stock=0-5000
players | name | team=Hawks/Tigers/Comets, position=guard/center/forward
    | goals=0-60, age=16-40
songs | title | artist=Abel/Birdie/Cato, album=Dawn/Echo/Fable
    | length=60-600, plays=0-90000
tickets | id | priority=low/medium/high, queue=billing/network/login
    | age_days=0-300, replies=0-40
invoices | number | client=Orion/Pegasus/Lyra, status=sent/paid/overdue
    | amount=20-9000, days_late=0-120
courses | title | teacher=Klein/Silva/Okoro, level=beginner/advanced
    | hours=4-200, seats=5-300
animals | name | species=lion/zebra/otter/owl, zone=Savanna/Forest/Coast
    | weight=1-900, age=0-50
servers | hostname | region=east/west/north, os=linux/windows
    | memory=2-512, cpu_cores=1-64
houses | address | district=Harbor/Oldtown/Hillside, type=flat/villa/loft
    | rent=300-5000, rooms=1-12
recipes | title | cuisine=Thai/Italian/Mexican, course=starter/main/dessert
    | calories=80-1400, minutes=5-240
trains | number | line=Coastal/Alpine/Central, operator=Raily/Ferro
    | speed=60-320, seats=40-1200
"""

_TEST = """
museums | name | country=Peru/Norway/Egypt, style=modern/gothic/baroque
    | visitors=500-90000, rooms=3-200
wines | label | grape=Merlot/Riesling/Malbec, region=Mosel/Rioja/Douro
    | vintage=1980-2023, rating=50-100
parcels | code | carrier=Swift/Falcon/Postline, state=waiting/shipped/lost
    | weight_kg=1-70, postage=2-90
athletes | name | sport=rowing/judo/fencing, club=Union/Rapid/Olympia
    | medals=0-30, height_cm=140-215
bridges | name | material=steel/stone/timber, river=Rhine/Danube/Loire
    | span=10-1900, opened=1850-2024
laptops | model | brand=Lenova/Asor/Dello, screen=matte/glossy
    | battery_hours=3-24, cost=200-4000
volunteers | name | shift=morning/evening/night, skill=cooking/driving/first aid
    | hours=1-400, years=0-30
telescopes | name | site=Atacama/Hawaii/Tenerife, kind=optical/radio
    | mirror=1-40, cost=100-9000
"""

TABLES: dict[Split, list[Table]] = {
    "train": _tables(_TRAIN),
    "test": _tables(_TEST),
}
