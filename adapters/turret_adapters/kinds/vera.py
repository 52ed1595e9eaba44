"""VeRA as PEFT saves it: `W' = W + diag(λ_b) B diag(λ_d) A` (Kopiczko et al., 2024).

A and B are random and shared: as large as the largest adapted linear, every linear reads their
first columns and rows. They are stored, or drawn again from projection_prng_key as PEFT does it.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from turret_adapters.components import LowRank
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import WEIGHTS_NAME, PeftConfig
from turret_adapters.peft.low_rank import FULL_WEIGHTS, compile_branches
from turret_adapters.peft.roles import SiteTensors, guess_sizes, simple_role
from turret_adapters.peft.targets import Targets
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import Kind, ModelShape, Program, Site

_ROLES = ("vera_lambda_d", "vera_lambda_b")
_ROLE_OF = simple_role({role: role for role in _ROLES})
_A, _B = "base_model.vera_A", "base_model.vera_B"
# Read below, or without effect on what the loaded adapter computes.
_KNOWN = frozenset(
    {
        "bias",
        "d_initial",
        "fan_in_fan_out",
        "init_weights",
        "layers_pattern",
        "layers_to_transform",
        "projection_prng_key",
        "r",
        "save_projection",
        "target_modules",
        "vera_dropout",
    }
)


class _Compiler:
    """One adapter against one base."""

    def __init__(self, files: AdapterFiles, shape: ModelShape):
        config = self._config = PeftConfig(files)
        config.check_fields(_KNOWN, {"modules_to_save": FULL_WEIGHTS})
        self._rank = config.integer("r", 256, 1)
        self._bias = config.choice("bias", "none", ("none", "all", "vera_only"))
        self._targets = Targets(config)
        self._tensors = PeftTensors(files, shape, config, _ROLE_OF)
        self._shape = shape
        self._a, self._b = self._projections()

    def program(self) -> Program:
        return compile_branches(
            "vera",
            self._tensors,
            self._targets,
            lambda *_: _ROLES,
            self._branch,
            bias=self._bias,
        )

    def _projections(self) -> tuple[Tensor, Tensor]:
        """A [rank, largest in] and B [largest out, rank], float32."""
        tensors, config = self._tensors, self._config
        adapted = [site for site, x in tensors.sites.items() if any(r in x.keys for r in _ROLES)]
        for site in adapted[:1]:
            tensors.check_rank(site, self._rank)
        sizes = [self._shape.dims[site.module] for site in adapted]
        size_a = self._rank, max((fan_in for fan_in, _ in sizes), default=0)
        size_b = max((fan_out for _, fan_out in sizes), default=0), self._rank
        is_stored = tensors.has(_A) and tensors.has(_B)
        if config.get("save_projection") is None or config.flag("save_projection"):
            if not is_stored:
                raise tensors.malformed("save_projection is true, but vera_A or vera_B is missing")
            a = tensors.read(_A, size_a, rank_dim=0)
            return a.float(), tensors.read(_B, size_b, rank_dim=1).float()
        if tensors.has(_A) or tensors.has(_B):
            raise tensors.malformed(
                "save_projection is false, but vera_A or vera_B is stored",
                "Set save_projection to true if they are the ones it was trained with.",
            )
        key = config.integer("projection_prng_key", 0, 0)
        if key >= 1 << 64:
            raise config.malformed(f"projection_prng_key is {key:e}, more than 64 bits")
        tensors.notes.append(
            f"vera_A and vera_B are not stored; they were drawn from projection_prng_key {key}"
        )
        generator = torch.Generator().manual_seed(key)
        return _draw(size_a, generator), _draw(size_b, generator)

    def _branch(self, site: Site, found: SiteTensors) -> LowRank:
        fan_in, fan_out = self._shape.dims[site.module]
        read, keys = self._tensors.read, found.keys
        d = read(keys["vera_lambda_d"], (self._rank,), rank_dim=0).float()
        b = read(keys["vera_lambda_b"], (fan_out,)).float()
        a = self._a[:, :fan_in] * d[:, None]
        return LowRank(site, a, self._b[:fan_out].T.contiguous() * b)


def _draw(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Kaiming's uniform distribution (gain √2), as PEFT draws it on a CPU in float32."""
    bound = sqrt(3.0) * (sqrt(2.0) / sqrt(max(size[1], 1)))
    return torch.empty(size).uniform_(-bound, bound, generator=generator)


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "VERA")


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    return _Compiler(files, shape).program()


def _guess_shape(files: AdapterFiles) -> ModelShape:
    # Nothing but A tells how wide an input is.
    stored = files.tensors(WEIGHTS_NAME).infos.get(_A)
    fan_in = stored.shape[-1] if stored is not None and stored.shape else 1

    def sizes(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
        return fan_in, (shapes.get("vera_lambda_b") or shapes.get("bias") or (0,))[0]

    return guess_sizes(files, _ROLE_OF, sizes)


KIND = Kind("vera", _detect, _compile, _guess_shape)
