"""From a folder to a compiled adapter in the served dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from os import PathLike

import torch

from turret_adapters.components import Component
from turret_adapters.compose import compose
from turret_adapters.derivation import Derivation
from turret_adapters.digest import content_digest
from turret_adapters.errors import AdapterChanged, AdapterMalformed, quote
from turret_adapters.files import AdapterFiles, FileLimits
from turret_adapters.registry import detect
from turret_adapters.spec import ModelShape, Positions, Program
from turret_adapters.tensor_file import is_finite
from turret_adapters.ternary import as_ternary

# Longest file: so many bytes for each value of the base, more than a sparse change of every value
# has (int64 and float32). What is longer is for another base, and is not read to find that out.
_BYTES_PER_VALUE, _LEAST_BYTES = 16, 64 << 20

StrPath = str | PathLike[str]
Origin = StrPath | Derivation  # where an adapter comes from: a folder, or several and a method


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedAdapter:
    """What is known of an adapter once it was loaded.

    Attributes:
        digest: identity of its content.
        kind: name of the kind, "lora".
        rank: the largest, 0 for kinds without one.
        targets: module names it touches, in model order.
        sites: the layers of each target: {"q_proj": "0-11, 20"}; "" where none are counted.
        num_parameters: elements of its components.
        num_bytes: of the components, in the served dtype.
        base_model: as its own config names it.
        notes: what a user may want to know.
        primitives: what it compiled to, sorted.
        positions: where in a request it acts, None for everywhere.
        num_virtual_tokens: positions that it puts before the prompt.
    """

    digest: str
    kind: str
    rank: int
    targets: tuple[str, ...]
    num_parameters: int
    num_bytes: int
    base_model: str | None
    notes: tuple[str, ...]
    primitives: tuple[str, ...]
    sites: Mapping[str, str] = field(default_factory=dict)
    positions: Positions | None = None
    num_virtual_tokens: int = 0


def read_adapter(
    origin: Origin,
    shape: ModelShape,
    dtype: torch.dtype,
    *,
    roots: Iterable[StrPath] | None = None,
    limits: FileLimits | None = None,
    is_wanted: Callable[[str], bool] = lambda digest: True,
    pin: bool = False,
    keep_ternary: bool = False,
) -> tuple[str, Program | None]:
    """Read, validate and compile an adapter.

    Args:
        origin: the folder, or what to derive it from.
        shape: the base model.
        dtype: the served dtype.
        roots: folders that may be read, None for all; sources of a derivation have their own.
        limits: bounds on the files.
        is_wanted: asked with the digest; what is not wanted is not compiled.
        pin: keep the program where a GPU copies from without a stop in between.
        keep_ternary: keep low-rank branches in two bits a value where that is what they are.

    Returns:
        The digest and the program in the served dtype, None if it is not wanted.

    Raises:
        AdapterError: the adapter cannot be served: what, why, fix.
    """
    roots = None if roots is None else tuple(roots)
    limits = _within(limits or FileLimits(), shape)
    if isinstance(origin, Derivation):
        digest, program = _derive(origin, shape, limits, is_wanted)
    else:
        with AdapterFiles.open(origin, roots, limits) as files:
            kind = detect(files)
            digest = content_digest(kind, files)
            program = kind.compile(files, shape) if is_wanted(digest) else None
            files.check_unchanged()
    if program is None:
        return digest, None
    if keep_ternary:
        program = replace(program, components=tuple(map(as_ternary, program.components)))
    program = _cast(program, dtype)
    return digest, _pinned(program) if pin else program


def _within(limits: FileLimits, shape: ModelShape) -> FileLimits:
    values = sum(math.prod(shape.dims[site.module]) for site in shape.sites())
    most = max(_BYTES_PER_VALUE * values, _LEAST_BYTES)
    return replace(limits, max_file_bytes=min(limits.max_file_bytes, most))


def _derive(
    derivation: Derivation,
    shape: ModelShape,
    limits: FileLimits,
    is_wanted: Callable[[str], bool],
) -> tuple[str, Program | None]:
    with ExitStack() as stack:
        opened = [
            stack.enter_context(AdapterFiles.open(source.path, source.roots, limits))
            for source in derivation.sources
        ]
        kinds = [detect(files) for files in opened]
        sources = [content_digest(*pair) for pair in zip(kinds, opened, strict=True)]
        for source, found in zip(derivation.sources, sources, strict=True):
            if source.digest not in (None, found):
                raise AdapterChanged(
                    "no adapter was derived",
                    f"{quote(source.path)} holds another adapter now ({found[:12]}) than is served",
                    "Load the source again, then derive.",
                )
        digest = derivation.digest(sources)
        if not is_wanted(digest):
            return digest, None
        programs = [k.compile(files, shape) for k, files in zip(kinds, opened, strict=True)]
        for files in opened:
            files.check_unchanged()
    return digest, compose(programs, derivation)


def describe_program(digest: str, program: Program) -> LoadedAdapter:
    """The facts about a program."""
    return LoadedAdapter(
        digest=digest,
        kind=program.kind,
        rank=program.rank,
        targets=tuple(program.targets),
        num_parameters=program.num_parameters,
        num_bytes=program.num_bytes,
        base_model=program.base_model,
        notes=program.notes,
        primitives=tuple(program.primitives),
        sites=program.sites,
        positions=program.positions,
        num_virtual_tokens=program.num_virtual_tokens,
    )


def _cast(program: Program, dtype: torch.dtype) -> Program:
    components: list[Component] = []
    for component in program.components:
        cast = component.to(dtype)
        # Only float16 overflows where float32 was finite.
        if dtype == torch.float16 and not all(map(is_finite, cast.tensors)):
            raise AdapterMalformed(
                "the adapter was not loaded",
                f"its values at {cast.site} exceed the range of float16",
                "Serve in bfloat16: --dtype bfloat16.",
            )
        components.append(cast)
    return replace(program, components=tuple(components))


def _pinned(program: Program) -> Program:
    return replace(program, components=tuple(c.pinned() for c in program.components))
