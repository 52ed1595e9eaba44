"""PEFT types that no kind reads, each with its reason: what a user can do depends on it.

A type that some kind reads has no place here; `registry.detect` asks only when none does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Refusal(NamedTuple):
    """Why adapters of a type are not served, and what to do instead."""

    why: str
    fix: str


_MERGE = "Merge it (merge_and_unload) and serve the merged model as a base of its own."
_CONVERT = (
    "Merge it (merge_and_unload) and serve the merged model, or approximate it with "
    "peft.save_as_lora and measure what that loses."
)


def _full_rank(name: str, what: str, fix: str = _CONVERT) -> Refusal:
    return Refusal(
        f"{name} {what}: a change of full rank, so every request would read weights of its own "
        "instead of sharing the base's",
        fix,
    )


REFUSED: Mapping[str, Refusal] = {
    "ADAMSS": Refusal(
        "AdaMSS clusters the base's weight rows when it is loaded, and does not store which output "
        "belongs to which cluster",
        _MERGE,
    ),
    "BOFT": Refusal(
        "BOFT turns a linear's input by a product of butterfly factors, which mix it as a whole; "
        "this version turns blocks (OFT)",
        _CONVERT,
    ),
    "C3A": _full_rank("C3A", "adds a block-circulant matrix to the weight"),
    "FOURIERFT": Refusal(
        "FourierFT adds the Fourier transform of a sparse spectrum to the weight: a change of up "
        "to two ranks per frequency, and it trains about a thousand frequencies",
        _CONVERT,
    ),
    "FROD": _full_rank("FRoD", "replaces the whole weight by a product of its own", _MERGE),
    "GLORA": _full_rank(
        "GLoRA",
        "in its usual setting multiplies the weight, element by element, with a low-rank matrix",
        _MERGE,
    ),
    "HIRA": _full_rank(
        "HiRA", "multiplies the weight, element by element, with a low-rank matrix", _MERGE
    ),
    "LILY": Refusal(
        "Lily averages its router's choice over all tokens of the batch: an answer would depend on "
        "the requests beside it",
        "Train a LoRA, or a mixture that chooses per token.",
    ),
    "OSF": _full_rank(
        "OSF", "retrains a part of each weight's singular vectors, by default half of them", _MERGE
    ),
    "PSOFT": Refusal(
        "PSOFT stores a rotation between singular vectors of the base, but not these vectors; "
        "another SVD may flip their signs, and then the rotation means something else",
        "Convert it where it was trained: peft.save_as_lora.",
    ),
    "PVERA": Refusal(
        "PVeRA learns a distribution of changes, and can be set to draw from it at inference, "
        "where one request must give one answer",
        "Merge it (merge_and_unload takes the mean) and serve the merged model, or train VeRA.",
    ),
    "RANDLORA": _full_rank("RandLoRA", "adds a sum of many random low-rank matrices"),
    "SHADOW": Refusal(
        "ShadowPEFT runs a second network beside the base, which reads and changes what passes "
        "between its layers",
        "Train a LoRA, or serve it with PEFT.",
    ),
    "WAVEFT": _full_rank("WaveFT", "adds the wavelet transform of a sparse spectrum to the weight"),
    "XLORA": Refusal(
        "X-LoRA weighs its adapters by what a second pass over the whole text finds, which this "
        "version does not do",
        'Load the adapters it mixes, and weigh them per request: "adapters": '
        '[{"name": …, "weight": …}].',
    ),
}
