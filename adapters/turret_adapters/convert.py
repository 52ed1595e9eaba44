"""Write an adapter of any kind as plain LoRA, where that says the same: for servers of LoRA alone.

The adapter is compiled against its base. If nothing but low-rank branches comes out, they are the
factors of a PEFT LoRA with scale 1, whatever the format that they were stored in.

What servers read differs: vLLM and SGLang take rank and scale of every module from `r` and
`lora_alpha`, LoRAX drops a module that some layers lack. So by default all modules get the largest
rank, and every layer each module, zeros where the adapter has nothing: r and lora_alpha say all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from turret_adapters.components import Component, LowRank
from turret_adapters.errors import AdapterUnsupported, quote
from turret_adapters.loading import Origin, read_adapter
from turret_adapters.peft.base_parts import balanced
from turret_adapters.peft.config import CONFIG_NAME, WEIGHTS_NAME
from turret_adapters.peft.names import module_path
from turret_adapters.spec import LINEARS, ModelShape, Module, Program, Site

_DOES = {
    "InputRotation": "it rotates the input of",
    "Offset": "it adds a vector at",
    "Prefix": "it puts keys and values before the prompt in",
    "RowDelta": "it changes single rows of",
    "Scale": "it scales",
    "SoftPrompt": "it puts virtual tokens before the prompt at",
    "SparseDelta": "it changes single weights of",
    "Threshold": "it leaves out small values at",
}
_PLACES = (*LINEARS, Module.EMBED, Module.HEAD)
# bfloat16 is off by up to 2**-9 in either factor. Much more is the fault of factors that cancel.
_ROUNDING = 2**-7

Factors = tuple[Tensor, Tensor]  # a [rank, in] and b [rank, out], float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What came out.

    Attributes:
        kind: of the source.
        ranks: of the adapter at each site; what was filled with zeros is not counted.
        rank: `r` of the LoRA.
        num_bytes: of its tensors' file.
        deviation: the largest relative error of a module's change (Frobenius norm), between what
            the source compiles to and what was written, read back; 0 in float32.
        digest: of the LoRA.
        notes: what is worth knowing about the source.
    """

    kind: str
    ranks: dict[Site, int]
    rank: int
    num_bytes: int
    deviation: float
    digest: str
    notes: tuple[str, ...]


def convert(
    source: Origin,
    target: Path,
    shape: ModelShape,
    *,
    dtype: torch.dtype = torch.float32,
    own_ranks: bool = False,
    prefix: str = "model.",
) -> Converted:
    """Write an adapter as a PEFT LoRA folder.

    Args:
        source: its folder, or what to derive it from.
        target: a folder; it may exist if it holds no adapter.
        shape: the base.
        dtype: of the tensors.
        own_ranks: every module keeps its own rank, and nothing is filled in: smaller, but of the
            servers named above only PEFT and vLLM read it.
        prefix: what precedes "layers" in the base's module names.

    Raises:
        AdapterError: the source cannot be served, is more than low rank, or the target is taken.
        OSError, SafetensorError: the target cannot be written.
    """
    if any((target / name).exists() for name in (CONFIG_NAME, WEIGHTS_NAME)):
        why = f"{quote(str(target))} holds an adapter already"
        raise _unsupported(source, why, "Name another folder.")
    _, program = read_adapter(source, shape, torch.float32)
    assert program is not None, "it was wanted"
    factors = _factors(source, program)
    ranks = {site: a.shape[0] for site, (a, _) in factors.items()}
    factors = {site: _sturdy(pair, dtype) for site, pair in factors.items()}
    written = factors if own_ranks else _filled(factors, shape)
    target.mkdir(parents=True, exist_ok=True)
    tensors = target / WEIGHTS_NAME
    try:
        save_file(_tensors(written, shape, dtype, prefix), tensors, {"format": "pt"})
        config = _config(written, shape, program.base_model or shape.name, prefix)
        (target / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        digest, found = read_adapter(target, shape, torch.float32)
        assert found is not None, "it was wanted"
        got = _factors(target, found)
        deviation = max(_error(pair, got[site]) for site, pair in written.items())
    except BaseException:  # interrupted, too: half a folder is no adapter
        for name in (WEIGHTS_NAME, CONFIG_NAME):
            (target / name).unlink(missing_ok=True)
        raise
    return Converted(
        kind=program.kind,
        ranks=ranks,
        rank=config["r"],
        num_bytes=tensors.stat().st_size,
        deviation=deviation,
        digest=digest,
        notes=program.notes,
    )


def _factors(source: Origin, program: Program) -> dict[Site, Factors]:
    """The factors of each site, several branches at one side by side.

    Raises:
        AdapterUnsupported: there is something else, or nothing.
    """
    found: dict[Site, list[LowRank]] = {}
    for component in program.components:
        if (why := _obstacle(component)) is not None:
            raise _unsupported(source, f"{why}, and LoRA can only add low-rank changes")
        assert isinstance(component, LowRank), "else it is an obstacle"
        found.setdefault(component.site, []).append(component)
    if program.positions is not None:
        raise _unsupported(source, "it acts at some positions of a request, and LoRA at all")
    if not found:
        raise _unsupported(source, "it changes nothing")
    return {
        site: (torch.cat([part.a for part in parts]), torch.cat([part.b for part in parts]))
        for site, parts in sorted(found.items())
    }


def _obstacle(component: Component) -> str | None:
    """What a component does that no LoRA does."""
    if not isinstance(component, LowRank):
        name = type(component).__name__
        return f"{_DOES.get(name, f'it has a {name} at')} {component.site}"
    if component.num_experts:
        return f"every token chooses among experts at {component.site}"
    return None if component.site.module in _PLACES else f"it acts on {component.site}"


def _sturdy(factors: Factors, dtype: torch.dtype) -> Factors:
    """Factors of the same change that can be rounded.

    Where large parts of their product cancel (HRA), what is left would be all rounding.
    """
    a, b = factors
    rounded = a.to(dtype).float(), b.to(dtype).float()
    return balanced(a, b) if _error(factors, rounded) > _ROUNDING else factors


def _filled(factors: Mapping[Site, Factors], shape: ModelShape) -> dict[Site, Factors]:
    """All modules of one rank, in every layer."""
    rank = max(a.shape[0] for a, _ in factors.values())
    modules = {site.module for site in factors}
    filled: dict[Site, Factors] = {}
    for site in (site for site in shape.sites() if site.module in modules):
        found = factors.get(site)
        sizes = [(rank, size) for size in shape.dims[site.module]]
        if found is not None and found[0].shape[0] == rank:
            filled[site] = found
            continue
        a, b = filled[site] = torch.zeros(sizes[0]), torch.zeros(sizes[1])
        if found is not None:
            a[: len(found[0])], b[: len(found[1])] = found
    return filled


def _tensors(
    factors: Mapping[Site, Factors], shape: ModelShape, dtype: torch.dtype, prefix: str
) -> dict[str, Tensor]:
    """Tensors by name; copies, because safetensors takes none that share memory (VeRA's A)."""
    tensors: dict[str, Tensor] = {}
    for site, (a, b) in factors.items():
        stem = f"base_model.model.{module_path(site, prefix, shape.has_post_norms)}"
        if site.module is Module.EMBED:
            names = f"{stem}.lora_embedding_A", f"{stem}.lora_embedding_B"
        else:
            names = f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"
        for name, tensor in zip(names, (a, b.T), strict=True):
            tensors[name] = torch.empty(tensor.shape, dtype=dtype).copy_(tensor)
    return tensors


def _config(
    factors: Mapping[Site, Factors], shape: ModelShape, base_model: str, prefix: str
) -> dict[str, Any]:
    """adapter_config.json."""
    ranks = {
        module_path(site, prefix, shape.has_post_norms): a.shape[0]
        for site, (a, _) in factors.items()
    }
    rank = max(ranks.values())
    others = {path: own for path, own in ranks.items() if own != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": _targets(factors, shape, prefix),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _targets(factors: Mapping[Site, Factors], shape: ModelShape, prefix: str) -> list[str]:
    """The modules' names, in full where a layer lacks one, or another tower may have it."""
    modules = {site.module for site in factors}
    everywhere = [site for site in shape.sites() if site.module in modules]
    if len(everywhere) == len(factors) and prefix == "model.":
        return sorted(modules)
    return [module_path(site, prefix, shape.has_post_norms) for site in factors]


def _error(want: Factors, got: Factors) -> float:
    """The relative error of a change (Frobenius norm).

    `B'A' - BA = (B' - B) A' + B (A' - A)`: both terms are small, so nothing cancels.
    """
    (a, b), (new_a, new_b) = want, got
    if torch.equal(a, new_a) and torch.equal(b, new_b):
        return 0.0
    error = _norm(torch.cat([new_a, new_a - a]), torch.cat([new_b - b, b]))
    return error / max(_norm(a, b), 1e-30)


def _norm(a: Tensor, b: Tensor) -> float:
    """The Frobenius norm of `b.T @ a`."""
    return math.sqrt(max(float(((a @ a.T).double() * (b @ b.T).double()).sum()), 0.0))


def _unsupported(source: Origin, why: str, fix: str = "") -> AdapterUnsupported:
    return AdapterUnsupported(
        f"{quote(str(source))} was not converted",
        why,
        fix or "Serve it as it is, or merge it into the base.",
    )
