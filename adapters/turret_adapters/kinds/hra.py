"""HRA as PEFT saves it: Householder reflections of the input (Yuan et al., 2024).

`W' = W H_1 ... H_r` with `H_i = I - 2 u_i u_i^T`, u_i normalised. In compact WY form the product is
`I - U T U^T`, T upper triangular, so the change is `-(W U T) U^T`: low rank, given the base. With
`apply_GS` the columns are made orthonormal first, and `T = 2 I`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turret_adapters.files import AdapterFiles
from turret_adapters.peft.low_rank import Factors, LowRankFormat
from turret_adapters.peft.roles import guess_sizes, simple_role
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import Kind, ModelShape, Program, Site

_FORMAT = LowRankFormat(
    "hra",
    simple_role({"hra_u": "u"}, suffixes=frozenset()),
    ("u",),
    frozenset({"apply_GS"}),
    ("hra_only",),
)
# Below, training's float32 Gram-Schmidt has lost three digits of the column.
_DEPENDENT = 1e-4


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    config = _FORMAT.config(files)
    rank = config.integer("r", 8, 1)
    is_orthonormal = config.flag("apply_GS")

    def read(tensors: PeftTensors, site: Site, fan_in: int, fan_out: int) -> Factors:
        found = tensors.at(site)
        u = tensors.read(found.keys["u"], (fan_in, rank), rank_dim=1).double()
        norms = u.norm(dim=0)
        if not norms.all():
            raise tensors.malformed(f"a column of hra_u at {found.path} is zero, and reflects none")
        u = u / norms
        if is_orthonormal:
            u, lengths = torch.linalg.qr(u)
            if rank > fan_in or lengths.diagonal().abs().min() < _DEPENDENT:
                raise tensors.unsupported(
                    f"apply_GS is set, and the columns of hra_u at {found.path} depend on each "
                    "other: the rounding of its training decides what it computes",
                    "Train it longer, or without apply_GS.",
                )
            left = 2 * u
        else:
            left = u @ _wy(u)
        b = -(tensors.base_weight(site) @ left.float()).T
        return u.T.float(), b

    return _FORMAT.compile(files, shape, config, read)


def _wy(u: Tensor) -> Tensor:
    """T [r, r] of `H_1 ... H_r = I - U T U^T` for unit columns (Schreiber and Van Loan, 1989)."""
    identity = torch.eye(u.shape[1], dtype=u.dtype)
    inverse = (u.T @ u).triu(1) + identity / 2
    return torch.linalg.solve_triangular(inverse, identity, upper=True)


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "HRA")


def _guess_shape(files: AdapterFiles) -> ModelShape:
    return guess_sizes(
        files,
        _FORMAT.role_of,
        lambda shapes: ((shapes.get("u") or (0,))[0], (shapes.get("bias") or (0,))[0]),
    )


KIND = Kind("hra", _detect, _compile, _guess_shape)
