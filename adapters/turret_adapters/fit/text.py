"""Plain text for a fit: windows of token ids, a part held out, and the perplexity on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from turret_adapters.errors import AdapterError, quote

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Step = Callable[[str], None]  # called with the stage, after each of its windows
_CHUNK_CHARS = 1 << 16


@dataclass(frozen=True, slots=True)
class TextWindows:
    """Token ids, cut into windows.

    Attributes:
        fitted: int64 [T] each; what statistics are taken of.
        held_out: int64 [T] each; what the result is judged on.
    """

    fitted: list[Tensor]
    held_out: list[Tensor]

    @property
    def num_fitted(self) -> int:
        """Tokens of `fitted`."""
        return sum(map(len, self.fitted))

    @property
    def num_held_out(self) -> int:
        """Tokens of `held_out`."""
        return sum(map(len, self.held_out))


def read_windows(
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    *,
    length: int = 512,
    max_tokens: int = 100_000,
    held_out: float = 0.1,
) -> TextWindows:
    """Read a text file up to a number of tokens.

    Windows spread over the text are held out, so that both parts are of one kind.

    Args:
        tokenizer: of the model.
        path: UTF-8 text, read piece by piece.
        length: tokens per window.
        max_tokens: where reading stops.
        held_out: share of the windows.

    Raises:
        AdapterError: the file cannot be read, or makes fewer than two windows.
    """
    what = f"{quote(str(path))} was not read"
    ids: list[int] = []
    try:
        for piece in _pieces(path):
            ids += tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
            if len(ids) >= max_tokens:
                break
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterError(what, str(error), "Name a text file in UTF-8.") from None
    windows = list(torch.tensor(ids[:max_tokens], dtype=torch.long).split(length))
    if windows and len(windows[-1]) < length:
        windows.pop()
    if len(windows) < 2:
        raise AdapterError(
            what,
            f"it has {len(ids)} tokens, and two windows of {length} are the least",
            "Give more text, or shorter windows.",
        )
    every = max(2, round(1 / held_out))
    kept = [window for i, window in enumerate(windows) if i % every != every - 1]
    return TextWindows(kept, windows[every - 1 :: every] or [kept.pop()])


def _pieces(path: Path) -> Iterator[str]:
    """The text, cut behind line ends, where tokens end as well."""
    with path.open(encoding="utf-8") as file:
        rest = ""
        while chunk := file.read(_CHUNK_CHARS):
            body, newline, rest = (rest + chunk).rpartition("\n")
            if newline:
                yield body + newline
        if rest:
            yield rest


@torch.inference_mode()
def perplexity(model: PreTrainedModel, windows: Sequence[Tensor], stage: str, step: Step) -> float:
    """exp of the mean negative log-likelihood of every token but each window's first."""
    total, count = 0.0, 0
    for window in windows:
        logits = model(window[None], use_cache=False).logits[0, :-1].float()
        total += float(cross_entropy(logits, window[1:], reduction="sum"))
        count += len(window) - 1
        step(stage)
    return math.exp(total / count)
