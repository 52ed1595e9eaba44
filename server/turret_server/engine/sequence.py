"""One request inside the engine: its tokens, its KV blocks, its progress. No torch.

A fused request has a sequence per member. One leads: it is queued, sampled for and answered; the
others take its tokens and share its fate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from turret_adapters.positions import Reach
from turret_server.engine.blocks import next_key, root_key
from turret_server.engine.messages import EngineRequest, TokenLogprob

if TYPE_CHECKING:
    from turret_adapters.site_weights import SiteWeights
    from turret_server.engine.grammar import GrammarMatcher


@dataclass(slots=True, eq=False)
class Sequence:
    """A request's state. The scheduler alone changes it.

    Attributes:
        request: what was asked; of a member beside the lead, with that member's prompt and recipe.
        tokens: virtual tokens, prompt, then output. Virtual tokens are -1, -2, …: what they stand
            for is up to the adapter that brings them. While `draw_row` says so, the last is a 0
            that stands for a token drawn and not yet known.
        arrival: monotonic seconds.
        num_computed: tokens whose keys and values are in the cache.
        blocks: KV blocks, in order.
        block_keys: content keys of the full blocks known so far.
        num_registered: full blocks already offered to the prefix cache.
        slots: device slots of the recipe's adapters while pinned.
        table_row: row of the block table while running.
        num_cached: prompt tokens found in the prefix cache when it first started.
        reach: which adapters act on which positions, None where all act on all.
        weights: of the recipe's adapters, as steps take them.
        banned: tokens that its model lacks, an auxiliary with an id map: an int64 tensor [N].
        others: the members that follow this sequence, if it leads a fused request.
        was_given_way: one that ran was put back for its sake; it happens once.
        draw_row: where the last token lies among those of the last draw; -1 once it is known.
    """

    request: EngineRequest
    tokens: list[int]
    arrival: float
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    block_keys: list[bytes] = field(default_factory=list)
    num_registered: int = 0
    slots: tuple[int, ...] | None = None
    table_row: int = -1
    num_cached: int = 0
    started: float | None = None
    first_token: float | None = None
    grammar: GrammarMatcher | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    reach: Reach | None = None
    weights: tuple[float | SiteWeights, ...] = ()
    banned: Any = None
    others: tuple[Sequence, ...] = ()
    was_given_way: bool = False
    draw_row: int = -1

    @classmethod
    def of(
        cls,
        request: EngineRequest,
        arrival: float,
        reach: Reach | None = None,
        weights: tuple[float | SiteWeights, ...] = (),
    ) -> Sequence:
        """A request that has just arrived."""
        count = 0 if reach is None else reach.num_virtual
        tokens = [*range(-1, -count - 1, -1), *request.prompt]
        return cls(request, tokens, arrival, reach=reach, weights=weights)

    @property
    def members(self) -> tuple[Sequence, ...]:
        """All sequences of the request that this one leads."""
        return (self, *self.others)

    @property
    def num_virtual(self) -> int:
        """Positions before the prompt."""
        return 0 if self.reach is None else self.reach.num_virtual

    @property
    def num_prompt(self) -> int:
        """Length of the prompt."""
        return len(self.request.prompt)

    @property
    def num_output(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.num_virtual - len(self.request.prompt)

    @property
    def remaining(self) -> int:
        """Tokens whose keys and values are still to be computed."""
        return len(self.tokens) - self.num_computed

    @property
    def is_in_prompt(self) -> bool:
        """Has any member more than one token to compute?"""
        if self.remaining > 1 or not self.others:
            return self.remaining > 1
        return any(member.remaining > 1 for member in self.others)

    @property
    def is_running(self) -> bool:
        """Does it hold blocks, adapters and a row of the block table?"""
        return self.table_row >= 0

    @property
    def recipe(self) -> tuple[str, ...]:
        """Digests of the adapters, in order."""
        return tuple(use.digest for use in self.request.adapters)

    @property
    def adapters(self) -> dict[str, tuple[str, ...]]:
        """Digests of the adapters of all members, each once, by the model that they act on."""
        found: dict[str, tuple[str, ...]] = {}
        for member in self.members:
            model = member.request.model
            found[model] = tuple(dict.fromkeys((*found.get(model, ()), *member.recipe)))
        return found

    def runs(self, model: str) -> bool:
        """Is it the model of a member?"""
        return any(member.request.model == model for member in self.members)

    def extend_keys(self, count: int, block_tokens: int) -> None:
        """Know the content keys of the first `count` blocks, whose tokens are known."""
        keys = self.block_keys
        if len(keys) >= count:
            return
        names = [f"{use.digest}:{use.weight!r}" for use in self.request.adapters]
        for first in range(len(keys) * block_tokens, count * block_tokens, block_tokens):
            stop = first + block_tokens
            parent = keys[-1] if keys else self._root_key(names)
            acting = "" if self.reach is None else self.reach.key(first, stop, names)
            keys.append(next_key(parent, self.tokens[first:stop], acting))

    def _root_key(self, names: list[str]) -> bytes:
        reach, request = self.reach, self.request
        every = [n for i, n in enumerate(names) if reach is None or i in reach.everywhere]
        every += [request.model] if request.model else []
        return root_key(request.cache_namespace, "|".join(every))
