"""Compress an adapter as ComPEFT does (Yadav et al., 2023, algorithm 1), and say what it cost.

With tau = value - rest: keep the entries of largest magnitude, a fraction `density` of them, and
replace each by `alpha * std(tau)` with its sign. The paper takes threshold and standard deviation
over the whole adapter; then a LoRA whose A is much larger than its B loses all of B. `per_tensor`
takes them tensor by tensor, for the same number of bytes.

The paper tunes alpha on validation data. Without data, "auto" is the alpha with which the change
that the adapter makes (all modules together) keeps its full size in its own direction; what is
added is orthogonal to it. The alpha of least squared error would shrink the change, and the
adapter's answers with it: tuned on the demo tasks, the best alphas are those of "auto"
(docs/benchmarks.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from turret_adapters.components import LowRank, Scale
from turret_adapters.compress.container import CONTAINER_NAME, DecodedFiles, Ternary
from turret_adapters.compress.container import write_container as write
from turret_adapters.errors import AdapterError, AdapterUnsupported, quote
from turret_adapters.files import AdapterFiles
from turret_adapters.loading import StrPath
from turret_adapters.peft.config import CONFIG_NAME, WEIGHTS_NAME
from turret_adapters.registry import detect
from turret_adapters.spec import Program, Site

# What may be compressed: the values of these parameters rest at 0 or 1 when nothing was learned.
_PARAMETERS = {
    "LORA": (0.0, {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}),
    "IA3": (1.0, {"ia3_l"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """What came out.

    Attributes:
        alpha: as it was used.
        num_bytes: of the compressed file.
        source_bytes: of the tensors it was made from, as they were stored.
        num_parameters: values that were compressed; the others are stored as they were.
        drift: relative error of the adapter's change at each site (Frobenius norm): 0 is exact. It
            can exceed 1 where an adapter still answers as before.
    """

    alpha: float
    num_bytes: int
    source_bytes: int
    num_parameters: int
    drift: dict[Site, float]

    @property
    def bits_per_parameter(self) -> float:
        """Bits of the file per compressed value."""
        return 8 * self.num_bytes / max(self.num_parameters, 1)

    @property
    def ratio(self) -> float:
        """How many times smaller it became."""
        return self.source_bytes / self.num_bytes


def compress(
    source: StrPath,
    target: Path,
    *,
    density: float = 0.2,
    alpha: float | None = None,
    per_tensor: bool = True,
) -> Compressed:
    """Compress a LoRA or (IA)3 folder.

    Args:
        source: the folder, as PEFT writes it.
        target: a folder for the compressed file; it may exist if it holds no adapter.
        density: fraction of values that are kept, in (0, 1].
        alpha: see above; None for "auto".
        per_tensor: see above.

    Raises:
        AdapterError: the source cannot be served, or is of another kind.
        ValueError: density or alpha is out of range.
    """
    if not 0 < density <= 1 or not (alpha is None or 0 < alpha < math.inf):
        raise ValueError(f"density {density} must lie in (0, 1], alpha {alpha} above 0")
    if target.exists() and any((target / name).exists() for name in (CONFIG_NAME, WEIGHTS_NAME)):
        raise _unsupported(target, "it holds an adapter already", "Name another folder.")
    with AdapterFiles.open(source) as files:
        rest, names = _compressible(files)
        kind = detect(files)
        program = kind.compile(files, kind.guess_shape(files))
        tensors = files.tensors(WEIGHTS_NAME)
        source_bytes = sum(info.num_bytes for info in tensors.infos.values())
        values = {key: tensors.read(key) for key in tensors.infos}
        config = files.json(CONFIG_NAME)
        files.check_unchanged()
    changes = {key: t.float() - rest for key, t in values.items() if _is_one_of(names, key)}
    ternary = sparsify(changes, density, per_tensor=per_tensor)
    target.mkdir(parents=True, exist_ok=True)
    path = target / CONTAINER_NAME

    def write_with(alpha: float) -> Program:
        scaled = {key: Ternary(t.values, alpha * t.scale) for key, t in ternary.items()}
        write(path, values | scaled, rest=rest, config=config)
        return _compiled(target)

    try:
        result = write_with(1.0 if alpha is None else alpha)
        if alpha is None:
            alpha = full_size_alpha(program, result)
            result = write_with(alpha)
    except BaseException:  # interrupted, too: half a file is no adapter
        path.unlink(missing_ok=True)
        raise
    return Compressed(
        alpha=alpha,
        num_bytes=path.stat().st_size,
        source_bytes=source_bytes,
        num_parameters=sum(t.numel() for t in changes.values()),
        drift=drift(program, result),
    )


def sparsify(
    changes: Mapping[str, Tensor], density: float, *, per_tensor: bool
) -> dict[str, Ternary]:
    """Signs of the largest entries, and the standard deviation, of each tensor or of all."""
    if per_tensor:
        parts = [sparsify({k: t}, density, per_tensor=False) for k, t in changes.items()]
        return {key: ternary for part in parts for key, ternary in part.items()}
    flat = torch.cat([t.reshape(-1) for t in changes.values()]).numpy()
    magnitudes = np.abs(flat)
    last_dropped = flat.size - int(flat.size * density)  # counted from 1, ascending
    least = np.partition(magnitudes, last_dropped - 1)[last_dropped - 1] if last_dropped else 0
    scale = float(flat.astype(np.float64).std(ddof=1)) if flat.size > 1 else float(magnitudes[0])
    return {
        key: Ternary((change.sign() * (change.abs() >= float(least))).to(torch.int8), scale)
        for key, change in changes.items()
    }


def full_size_alpha(program: Program, result: Program) -> float:
    """The alpha whose change, projected on the adapter's, is the adapter's; given alpha 1's.

    That is <alpha's change, change> = <change, change>. LoRA's change grows with alpha squared (A
    and B both carry it), (IA)3's with alpha.

    Raises:
        AdapterUnsupported: the result has nothing of the adapter's change.
    """
    inner = norm = 0.0
    power = 2 if any(isinstance(c, LowRank) for c in program.components) else 1
    for want, got in _pairs(program, result).values():
        inner += _dot(want, got)
        norm += _dot(want, want)
    if inner <= 1e-6 * norm:
        raise AdapterUnsupported(
            "the adapter was not compressed",
            "at this density nothing is left of what it does",
            "Raise --density, or compress tensor by tensor (without --per-adapter).",
        )
    return (norm / inner) ** (1 / power)


def drift(program: Program, result: Program) -> dict[Site, float]:
    """Relative error of the change at each site that low-rank branches or scales change."""
    found: dict[Site, float] = {}
    for site, (want, got) in sorted(_pairs(program, result).items()):
        error = _dot(want, want) - 2 * _dot(want, got) + _dot(got, got)
        found[site] = math.sqrt(max(error, 0.0) / max(_dot(want, want), 1e-300))
    return found


# A change of a site: factors (a, b) of `b.T @ a`, or a vector and a one.
_Change = tuple[Tensor, Tensor]


def _pairs(program: Program, result: Program) -> dict[Site, tuple[_Change, _Change]]:
    wanted, got = _changes(program), _changes(result)
    return {site: (wanted[site], got[site]) for site in wanted}


def _changes(program: Program) -> dict[Site, _Change]:
    changes: dict[Site, _Change] = {}
    for c in program.components:
        if isinstance(c, LowRank):
            changes[c.site] = c.a.double(), c.b.double()
        elif isinstance(c, Scale):
            changes[c.site] = c.vector.double()[None] - 1, torch.ones(1, 1, dtype=torch.float64)
    return changes


def _dot(x: _Change, y: _Change) -> float:
    """The inner product of two changes, `sum((bx.T ax) * (by.T ay))`, without forming them."""
    return float(((x[0] @ y[0].T) * (x[1] @ y[1].T)).sum())


def _compressible(files: AdapterFiles) -> tuple[float, set[str]]:
    declared = files.json(CONFIG_NAME).get("peft_type") if files.has(CONFIG_NAME) else None
    found = _PARAMETERS.get(declared) if isinstance(declared, str) else None
    if found is None:
        raise _unsupported(
            files.path,
            f"its peft_type is {quote(declared)}; LORA and IA3 have values that rest at 0 or 1",
            "Name the folder that PEFT's save_pretrained wrote.",
        )
    return found


def _compiled(folder: Path) -> Program:
    with AdapterFiles.open(folder) as files:
        decoded = DecodedFiles(files)
        kind = detect(decoded)
        return kind.compile(decoded, kind.guess_shape(decoded))


def _is_one_of(names: set[str], key: str) -> bool:
    parts = key.split(".")
    return parts[-1] != "bias" and not names.isdisjoint(parts)


def _unsupported(path: Path, why: str, fix: str) -> AdapterError:
    return AdapterUnsupported(f"{quote(str(path))} was not compressed", why, fix)
