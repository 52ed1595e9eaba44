"""LoRA files of one recipe differ in their numbers alone: what compiling one found serves them all.

A platform's fine-tunes come out of one training script, with the same settings and the same header.
Where every factor lies, which site it belongs to and how it is scaled follow from those two and the
base. `PlainLayout` remembers it, and reads the next such file with a few operations over all layers
in the place of some for every tensor.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from turret_adapters.components import Component, LowRank
from turret_adapters.spec import ModelShape, Program, Site
from turret_adapters.tensor_file import TensorFile
from turret_adapters.tensor_index import Index

_MAX_LAYOUTS = 32
_SAFE = 1e38  # below float32's largest number
_Key: TypeAlias = tuple[Index, bytes]
_Alike: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], float]


@dataclass(frozen=True, slots=True)
class Factors:
    """Where the stored factors of a site lie.

    Attributes:
        site: the site.
        a: name of A, [rank, in].
        b: name of B, [out, rank].
        scale: alpha / r.
    """

    site: Site
    a: str
    b: str
    scale: float


class PlainLayout:
    """How files with one header become components.

    Args:
        index: what the header says; all tensors are of one floating-point dtype.
        factors: of every site, in the order of the components. They are all that the file holds.
        program: what the first such file was compiled to; its components are not kept.
    """

    def __init__(self, index: Index, factors: Sequence[Factors], program: Program):
        infos = sorted(index.infos.items(), key=lambda item: item[1].start)
        order = {name: i for i, (name, _) in enumerate(infos)}
        self._sizes = [info.num_bytes // info.dtype.itemsize for _, info in infos]
        self._program = replace(program, components=())
        self._largest_scale = max(abs(f.scale) for f in factors)
        # Sites whose factors have the same shapes and scale are read together.
        self._groups: defaultdict[_Alike, list[tuple[int, Site, int, int]]] = defaultdict(list)
        for number, f in enumerate(factors):
            alike = index.infos[f.a].shape, index.infos[f.b].shape, f.scale
            self._groups[alike].append((number, f.site, order[f.a], order[f.b]))

    def program(self, file: TensorFile) -> Program | None:
        """What `file` compiles to; None if its values need a closer look."""
        values = file.values
        if values is None or not file.largest * max(self._largest_scale, 1.0) < _SAFE:
            return None
        pieces = values.split(self._sizes)
        components: dict[int, Component] = {}
        for (shape_a, shape_b, scale), members in self._groups.items():
            numbers, sites, at_a, at_b = zip(*members, strict=True)
            a = torch.stack([pieces[i] for i in at_a]).view(-1, *shape_a)
            b = torch.stack([pieces[i] for i in at_b]).view(-1, *shape_b)
            b = b.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)
            pairs = zip(a.unbind(), b.mul_(scale).unbind(), strict=True)
            for number, site, (a_here, b_here) in zip(numbers, sites, pairs, strict=True):
                components[number] = LowRank(site, a_here, b_here, published_scale=scale)
        in_order = tuple(components[number] for number in range(len(components)))
        return replace(self._program, components=in_order)


class Layouts:
    """The layouts that were seen last, by header, settings and base."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._layouts: OrderedDict[_Key, tuple[ModelShape, PlainLayout]] = OrderedDict()

    def get(self, index: Index, settings: bytes, shape: ModelShape) -> PlainLayout | None:
        """The layout, if it was put and is remembered."""
        key = index, settings
        with self._lock:
            base, layout = self._layouts.get(key, (None, None))
            if layout is None or base is not shape:
                return None
            self._layouts.move_to_end(key)
            return layout

    def put(self, index: Index, settings: bytes, shape: ModelShape, layout: PlainLayout) -> None:
        """Remember a layout in the place of the least recently used."""
        with self._lock:
            self._layouts[index, settings] = shape, layout
            if len(self._layouts) > _MAX_LAYOUTS:
                self._layouts.popitem(last=False)
