"""LoKr as PEFT saves it: `W' = W + s (W1 ⊗ W2)` (LyCORIS: Yeh et al., 2024).

W1 and W2 are stored in full or as products of rank r. A Kronecker product of products is a product
of Kronecker products, `(L1 R1) ⊗ (L2 R2) = (L1 ⊗ L2)(R1 ⊗ R2)`: a branch of rank
rank(W1) · rank(W2), which is often some hundreds.
"""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor

from turret_adapters.components import LowRank
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.low_rank import compile_branches
from turret_adapters.peft.lycoris import LycorisSettings
from turret_adapters.peft.roles import SiteTensors, guess_sizes, simple_role
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import Kind, ModelShape, Program, Site

_NAMES = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
_ROLE_OF = simple_role({f"lokr_{name}": name for name in _NAMES})
_KNOWN = frozenset({"decompose_both", "decompose_factor", "rank_dropout_scale"})


class _Compiler:
    """One adapter against one base."""

    def __init__(self, files: AdapterFiles, shape: ModelShape):
        settings = self._settings = LycorisSettings(files, _KNOWN)
        self._factor = settings.config.integer("decompose_factor", -1, -1)
        self._decompose_both = settings.config.flag("decompose_both")
        self._tensors = PeftTensors(files, shape, settings.config, _ROLE_OF)
        self._shape = shape

    def program(self) -> Program:
        return compile_branches(
            "lokr", self._tensors, self._settings.targets, self._roles, self._branch
        )

    def _sizes(self, site: Site) -> tuple[tuple[int, int], tuple[int, int]]:
        """The sizes of W1 and W2."""
        fan_in, fan_out = self._shape.dims[site.module]
        in1, in2 = split_size(fan_in, self._factor)
        out1, out2 = split_size(fan_out, self._factor)
        return (out1, in1), (out2, in2)

    def _roles(self, site: Site, path: str) -> tuple[str, ...]:
        """PEFT decomposes W2, and W1 if asked, where that saves parameters."""
        rank = self._settings.rank(path)
        size1, size2 = self._sizes(site)
        is_product1 = self._decompose_both and 2 * rank < max(size1)
        roles = ("w1_a", "w1_b") if is_product1 else ("w1",)
        return roles + (("w2_a", "w2_b") if 2 * rank < max(size2) else ("w2",))

    def _branch(self, site: Site, found: SiteTensors) -> LowRank:
        if "t2" in found.keys:
            raise self._tensors.unsupported(
                f"{found.path} has a Tucker core (lokr_t2), which belongs to a convolution",
                "Train it on linears.",
            )
        rank, scale = self._settings.rank(found.path), self._settings.scale(found.path)
        size1, size2 = self._sizes(site)
        roles = self._roles(site, found.path)
        rank1 = min(rank, *size1) if "w1_a" in roles else min(size1)
        rank2 = min(rank, *size2) if "w2_a" in roles else min(size2)
        self._tensors.check_rank(site, rank1 * rank2)
        left1, right1 = self._factors(found, "w1", size1, rank)
        left2, right2 = self._factors(found, "w2", size2, rank)
        # kron(x, y).T is kron(x.T, y.T), and comes out with a contiguous row per rank.
        return LowRank(site, _kron(right1, right2), _kron(left1.T, left2.T * scale))

    def _factors(
        self, found: SiteTensors, name: str, size: tuple[int, int], rank: int
    ) -> tuple[Tensor, Tensor]:
        """[rows, k] and [k, columns] whose product is the matrix, with the least k."""
        rows, columns = size
        if name in found.keys:
            matrix = self._tensors.read(found.keys[name], size).float()
        else:
            read = self._tensors.read
            left = read(found.keys[f"{name}_a"], (rows, rank), rank_dim=1).float()
            right = read(found.keys[f"{name}_b"], (rank, columns), rank_dim=0).float()
            if rank <= min(size):
                return left, right
            matrix = left @ right
        return (torch.eye(rows), matrix) if rows <= columns else (matrix, torch.eye(columns))


def _kron(x: Tensor, y: Tensor) -> Tensor:
    """`torch.kron(x, y)`, which fails on some transposed vectors."""
    rows, columns = x.shape[0] * y.shape[0], x.shape[1] * y.shape[1]
    return (x[:, None, :, None] * y[:, None]).reshape(rows, columns)


def split_size(size: int, factor: int) -> tuple[int, int]:
    """How PEFT splits a dimension in two: by `factor` where that divides it.

    Otherwise into its divisors closest to the square root, the smaller one first and at most
    `factor` (-1: no bound).
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    bound = isqrt(size) if factor < 0 else min(factor, isqrt(size))
    small = next((d for d in range(bound, 1, -1) if size % d == 0), 1)
    return small, size // small


def _guess(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
    def size(end: str, dim: int) -> int:
        sizes = (shapes.get(f"w{i}") or shapes.get(f"w{i}_{end}") or (0,) for i in (1, 2))
        first, second = (size[dim] for size in sizes)
        return first * second

    return size("b", -1), size("a", 0)


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "LOKR")


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    return _Compiler(files, shape).program()


def _guess_shape(files: AdapterFiles) -> ModelShape:
    return guess_sizes(files, _ROLE_OF, _guess)


KIND = Kind("lokr", _detect, _compile, _guess_shape)
