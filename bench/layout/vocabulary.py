"""Words and numbers, each of which comes once."""

from __future__ import annotations

import random
from collections.abc import Callable

# Of each text the words, of `_HAN` the characters.
_NOUNS = """
anchor apple axle badge barrel basin beam bearing belt bench bolt bottle bracket brass brick bridge
brush bucket buckle bulb cabin cable canvas carbon castor cedar chain chisel clamp clock cloth coal
coil copper cord cork cotton crane crate crystal cushion dial disc door drill drum easel engine fan
felt fence fibre file filter flag flask flour frame fuse gasket gauge gear glass glove glue grain
grate gravel handle harness hatch helmet hinge hook hose ink iron jar jug kettle key knob ladder
lamp latch lead leather lemon lens lever lid lime linen lock lumber magnet maple mask mast mirror
mortar motor nail needle nickel nozzle nut oak oil olive oven paddle paint panel paper pearl pedal
pepper pewter pillar pin pine pipe piston plank plaster plate plug pole prism pulley pump quartz
rack rail raisin ribbon rice rivet rod roller rope rubber saddle salt sand satin screw seal shaft
shelf silk silver slate sleeve soap socket spade spool spring stove strap sugar switch syrup table
tape tea thread tile timber tin tool torch towel tray tube twine valve varnish vase velvet vise
wagon walnut washer wax wheel whistle willow winch wire wool wrench yarn zinc
"""
_ADJECTIVES = """
black blue broad bright clear coarse cold curved dark deep double dry fine flat green grey heavy
hollow large light long loose narrow new old plain polished red rough round sharp short single small
smooth soft square steel stiff strong tall thick thin warm white wide wooden yellow
"""
_SYLLABLES = """
ba be co da de el fi ga ha in ka la le li ma me mo na ne no or pa pe ra re ri ro sa se si ta te ti
to ul un va ve vi
"""
_HAN = (
    "年月日本国東西南北京都山川水火木金土田口目手足心力人大小中上下左右前後内外新古高低長短"
    "多少会社員学校生先話電車駅道店商品価格数量合計税込請求書納期番号住所名力機械部材料鉄銅"
    "紙布糸油米塩糖茶酒肉魚"
)
_HEBREW = "אבגדהוזחטיכלמנסעפצקרשת"


def _shuffled(text: str, rng: random.Random) -> list[str]:
    words = text.split()
    return rng.sample(words, len(words))


class Vocabulary:
    """Draws words for one page; none comes twice."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._used: set[str] = set()
        self._nouns = _shuffled(_NOUNS, rng)
        self._adjectives = _shuffled(_ADJECTIVES, rng)

    def _once(self, draw: Callable[[], str]) -> str:
        while (word := draw()) in self._used:
            pass
        self._used.add(word)
        return word

    def words(self, count: int) -> list[str]:
        """A thing's name in so many words."""
        adjectives = [self._adjectives.pop() for _ in range(count - 1) if self._adjectives]
        noun = [self._nouns.pop()] if self._nouns else []
        found = [*adjectives, *noun]
        return [*found, *(self.filler() for _ in range(count - len(found)))]

    def filler(self) -> str:
        """A word of a running text; it means nothing."""
        syllables = _SYLLABLES.split()
        return self._once(
            lambda: "".join(self._rng.choices(syllables, k=self._rng.choice((1, 2, 2, 3, 3, 4))))
        )

    def amount(self, digits: int) -> str:
        """An amount of money with up to so many digits before the point."""
        return self._once(
            lambda: (
                f"{self._rng.randrange(10 ** self._rng.randint(1, digits))}"
                f".{self._rng.randrange(100):02}"
            )
        )

    def count(self) -> str:
        """A whole number."""
        return self._once(lambda: f"{self._rng.randrange(10 ** self._rng.randint(1, 5)):,}")

    def code(self) -> str:
        """A number of an article or a document."""
        letters = "ABCDEFGHJKLMNPRSTUVWXYZ"
        return self._once(
            lambda: "".join(self._rng.choices(letters, k=2)) + f"-{self._rng.randrange(10000):04}"
        )

    def date(self) -> str:
        """A day, in ISO's form."""
        return self._once(
            lambda: (
                f"20{self._rng.randint(10, 29)}-{self._rng.randint(1, 12):02}"
                f"-{self._rng.randint(1, 28):02}"
            )
        )

    def han(self, least: int, most: int) -> str:
        """Chinese characters in a row."""
        return self._once(
            lambda: "".join(self._rng.choices(_HAN, k=self._rng.randint(least, most)))
        )

    def hebrew(self) -> str:
        """A word of Hebrew letters."""
        return self._once(lambda: "".join(self._rng.choices(_HEBREW, k=self._rng.randint(2, 7))))
