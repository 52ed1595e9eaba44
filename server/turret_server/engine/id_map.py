"""Token ids of an auxiliary model whose vocabulary is not the main model's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class IdMap:
    """From the main model's token ids to an auxiliary's.

    A sequence holds what is generated as the main model's ids, whichever model runs it. The prompt
    of an auxiliary may have tokens that the main model lacks: its ids stand behind those.

    Args:
        ids: by the main model's ids, the auxiliary's; -1 for what it lacks.
        vocab: rows of the auxiliary's logits.
        main_vocab: rows of the main model's.
        device: of the auxiliary.

    Attributes:
        banned: int64 [N], the main model's ids without a counterpart.
    """

    def __init__(self, ids: Sequence[int], vocab: int, main_vocab: int, device: torch.device):
        known = torch.tensor(ids)
        self._shift, self._padding = len(ids), main_vocab - len(ids)
        self._places = known.clamp(min=0).to(device)
        self._own = torch.cat([self._places, torch.arange(vocab, device=device)])
        self._missing = (known < 0).nonzero()[:, 0].to(device)
        beyond = torch.arange(len(ids), main_vocab, device=device)
        self.banned = torch.cat([self._missing, beyond])

    def prompt(self, tokens: Sequence[int]) -> list[int]:
        """A prompt of the auxiliary's ids as a sequence holds it."""
        return [token + self._shift for token in tokens]

    def own(self, tokens: Tensor) -> Tensor:
        """A sequence's ids as the auxiliary knows them: int64 of any shape."""
        return self._own[tokens]

    def to_main(self, logits: Tensor) -> Tensor:
        """Logits [L, vocab] of the auxiliary as [L, main_vocab]; what it lacks is banned."""
        found = logits.index_select(1, self._places)
        found.index_fill_(1, self._missing, float("-inf"))
        return torch.nn.functional.pad(found, (0, self._padding), value=float("-inf"))
