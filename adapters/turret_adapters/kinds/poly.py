"""Polytropon and multi-head routing as PEFT saves them: skills that a task mixes.

Ponti et al., 2022, arXiv:2202.13914, and Caccia et al., 2022, arXiv:2211.03831.
For one task the mixture is constant, so it is folded into an ordinary low-rank branch. With
w = sigmoid(logits of the task) / sum over skills, in each of `n_splits` parts of input and output
A = sum w_s A_s and B = sum w_s B_s, and `W' = W + B A / r`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turret_adapters.components import Component, LowRank
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.config import CONFIG_NAME, PeftConfig
from turret_adapters.peft.roles import guess_sizes, simple_role
from turret_adapters.peft.targets import Targets
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import Kind, ModelShape, Module, Program, Site

_KNOWN = frozenset(
    {
        "exclude_modules",
        "init_weights",
        "n_skills",
        "n_splits",
        "n_tasks",
        "poly_type",
        "r",
        "target_modules",
        "task_id",
    }
)
_REFUSED = {"modules_to_save": "it stores full weights of modules beside the skills"}
_ROLE = simple_role(
    {"poly_lora_A": "A", "poly_lora_B": "B", "poly_router": "logits"},
    suffixes=frozenset({"module_logits"}),
)
_EPSILON = 1e-12  # PEFT's


class _Compiler:
    """One adapter against one base, for one of its tasks."""

    def __init__(self, files: AdapterFiles, shape: ModelShape):
        config = PeftConfig(files)
        config.check_fields(_KNOWN, _REFUSED)
        config.choice("poly_type", "poly", ("poly",))
        self._rank = config.integer("r", 8, 1)
        self._num_tasks = config.integer("n_tasks", 1, 1)
        self._num_skills = config.integer("n_skills", 4, 1)
        self._num_splits = config.integer("n_splits", 1, 1)
        self._task = _task(config, self._num_tasks)
        self._targets = Targets(config)
        self._tensors, self._shape = PeftTensors(files, shape, config, _ROLE), shape

    def program(self) -> Program:
        components: list[Component] = []
        for site in self._shape.sites():
            # PEFT adapts linears alone, whatever the config names.
            matched = False if site.module is Module.EMBED else None
            if self._tensors.is_adapted(site, ("A", "B", "logits"), self._targets, matched):
                components.append(self._fold(site))
            self._tensors.ignore_base_copy(site)
        return self._tensors.program("poly", components, targets=self._targets)

    def _fold(self, site: Site) -> LowRank:
        tensors, keys = self._tensors, self._tensors.at(site).keys
        fan_in, fan_out = self._shape.dims[site.module]
        splits, skills, rank = self._num_splits, self._num_skills, self._rank
        if fan_in % splits or fan_out % splits:
            raise tensors.wrong_base(
                f"n_splits is {splits}, and {site} has {fan_in} inputs and {fan_out} outputs"
            )
        a = tensors.read(keys["A"], (splits, skills, fan_in // splits, rank), rank_dim=3)
        b = tensors.read(keys["B"], (splits, skills, rank, fan_out // splits), rank_dim=2)
        logits = tensors.read(keys["logits"], (self._num_tasks, splits * skills))
        weights = self._weights(logits)
        a = torch.einsum("qs,qsdr->qdr", weights, a.float()).reshape(fan_in, rank)
        b = torch.einsum("qs,qsrd->rqd", weights, b.float()).reshape(rank, fan_out)
        return LowRank(site, a.T.contiguous(), b / rank)

    def _weights(self, logits: Tensor) -> Tensor:
        """How the task mixes the skills, [splits, skills]."""
        chosen = logits[self._task].float().view(self._num_splits, self._num_skills).sigmoid()
        return chosen / (chosen.sum(-1, keepdim=True) + _EPSILON)


def _task(config: PeftConfig, num_tasks: int) -> int:
    """The task that is served: the config's `task_id`, which PEFT gets with every call."""
    value = config.get("task_id")
    if value is None and num_tasks > 1:
        raise config.unsupported(
            f"it holds {num_tasks} tasks, and nothing says which of them to serve",
            f'Add "task_id": 0 (to {num_tasks - 1}) to {CONFIG_NAME}; to serve several tasks, copy '
            "the folder once for each.",
        )
    task = config.checked_integer("task_id", 0 if value is None else value, 0)
    if task >= num_tasks:
        raise config.malformed(f"task_id is {task}, and there are {num_tasks} tasks")
    return task


def _sizes(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
    a, b = shapes.get("A", ()), shapes.get("B", ())
    return a[0] * a[2] if len(a) == 4 else 0, b[0] * b[3] if len(b) == 4 else 0


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "POLY")


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    return _Compiler(files, shape).program()


def _guess_shape(files: AdapterFiles) -> ModelShape:
    return guess_sizes(files, _ROLE, _sizes)


KIND = Kind("poly", _detect, _compile, _guess_shape)
