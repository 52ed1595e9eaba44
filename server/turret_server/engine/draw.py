"""What a step draws: tokens that stay on the device for the next step, and travel to the host."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import torch
from torch import Tensor

from turret_server.engine.fusion import split_weights
from turret_server.engine.messages import ErrorInfo, TokenLogprob
from turret_server.engine.scheduler import Sampled
from turret_server.engine.sequence import Sequence

_NOTHING = Sampled()


def _no_tokens() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


class HostCopies:
    """Tensors on their way to the host.

    Args:
        device: where they come from.
    """

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event() if device.type == "cuda" else None

    def send(self, x: Tensor) -> Tensor:
        """Where the content will be after `wait`. The host does not wait for it now."""
        if self._event is None:
            return x
        copy = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        return copy.copy_(x, non_blocking=True)

    def close(self) -> None:
        """Everything was sent."""
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Until the device has done all that it was told before `close`."""
        if self._event is not None:
            self._event.synchronize()


@dataclass(slots=True)
class Draw:
    """The results of a step before they are there.

    Attributes:
        num_shares: of the step.
        copies: what is on its way to the host; the other tensors but `tokens` are among it.
        prompts: by share, the `logprob_table` of the prompt's tokens.
        rows: whose token lies in which row; of a fused request the lead's.
        shares: by row, the share that is answered.
        tokens: int64 [R], on the device.
        host_tokens: the same.
        failed: by row, why its grammar broke.
        wants: rows with log-probabilities.
        logprobs: `logprob_table` of these rows.
        weights: float32, of all terms of all fused requests, if one of them traces them.
    """

    num_shares: int
    copies: HostCopies
    prompts: dict[int, Tensor] = field(default_factory=dict)
    rows: dict[Sequence, int] = field(default_factory=dict)
    shares: list[int] = field(default_factory=list)
    tokens: Tensor = field(default_factory=_no_tokens)
    host_tokens: Tensor = field(default_factory=_no_tokens)
    failed: dict[int, ErrorInfo] = field(default_factory=dict)
    wants: list[int] = field(default_factory=list)
    logprobs: Tensor | None = None
    weights: Tensor | None = None

    def results(self) -> list[Sampled]:
        """One per share, in order, without a token where it does not sample. Waits for them."""
        self.copies.wait()
        prompts = {share: read_logprobs(table) for share, table in self.prompts.items()}
        results = [_NOTHING] * self.num_shares
        for share, entries in prompts.items():
            results[share] = Sampled(prompt_logprobs=entries)
        logprobs, tokens = self._logprobs(), self.host_tokens.tolist()
        for sequence, row in self.rows.items():
            share, token = self.shares[row], tokens[row]
            if row in self.failed:
                results[share] = Sampled(error=self.failed[row])
                continue
            if sequence.grammar is not None:
                sequence.grammar.accept(token)
            results[share] = Sampled(token, logprobs.get(row), prompts.get(share))
        return results

    def _logprobs(self) -> dict[int, TokenLogprob]:
        """By row, as many alternatives as its request asked for, and the weights that it traces."""
        if self.logprobs is None:
            return {}
        sequences = list(self.rows)
        found = dict(zip(self.wants, read_logprobs(self.logprobs), strict=True))
        for row, entry in found.items():
            count = sequences[row].request.sampling.logprobs
            found[row] = msgspec.structs.replace(entry, top=entry.top[:count])
        if self.weights is not None:
            leads = [s for s in sequences if s.request.fusion is not None]
            for lead, used in zip(leads, split_weights(leads, self.weights.tolist()), strict=True):
                row = self.rows[lead]
                if used and row in found:
                    found[row] = msgspec.structs.replace(found[row], weights=used)
        return found


def logprob_table(logprobs: Tensor, tokens: Tensor, count: int) -> Tensor:
    """The log-probability and rank of one token per row, with the `count` likeliest.

    Args:
        logprobs: float32 [R, V].
        tokens: int64 [R], beside them.
        count: how many alternatives.

    Returns:
        float64 [R, 3 + 2 count], which holds every float32 and every id: token, rank,
        log-probability, then ids and log-probabilities of the likeliest.
    """
    own = logprobs.gather(1, tokens[:, None])
    rank = (logprobs > own).sum(-1, keepdim=True) + 1
    values, ids = logprobs.topk(min(count, logprobs.shape[1]), dim=-1)
    columns = [tokens[:, None], rank, own, ids, values]
    return torch.cat([column.double() for column in columns], dim=1)


def read_logprobs(table: Tensor) -> list[TokenLogprob]:
    """A table of `logprob_table`, on the host."""
    found = []
    for token, place, value, *top in table.tolist():
        likeliest, logs = top[: len(top) // 2], top[len(top) // 2 :]
        pairs = [(int(i), log) for i, log in zip(likeliest, logs, strict=True)]
        found.append(TokenLogprob(int(token), value, int(place), pairs))
    return found
