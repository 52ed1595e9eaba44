"""Adapters are compiled on the host, wherever the base's weights are that a kind asks for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.kinds.lab import CASES
from torch import Tensor
from torch.utils._pytree import tree_leaves

from turret_adapters.files import AdapterFiles
from turret_adapters.registry import detect
from turret_adapters.spec import ModelShape, Program, Site

# Those that ask for the base's weights.
ASKING = re.compile(r"hra$|ln_tuning$|lora-(dora|pissa|olora)|sparse_ft|trainable_tokens")
EVERY = [pytest.param(c, c.bases[-1], id=c.name) for c in CASES if ASKING.match(c.name)]


class OnGpu(Tensor):
    """A tensor that meets none of the host's, as one on a GPU; `cpu` brings it there."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        is_mixed = any(not isinstance(x, OnGpu) and x.dim() for x in tensors)
        if is_mixed and func not in (Tensor.__getitem__, Tensor.copy_):
            raise RuntimeError("Expected all tensors to be on the same device")
        return super().__torch_function__(func, types, args, kwargs or {})


def on_gpu(read: Callable[[Site], Tensor | None] | None) -> Callable[[Site], Tensor | None]:
    assert read is not None

    def found(site: Site) -> Tensor | None:
        tensor = read(site)
        return None if tensor is None else tensor.as_subclass(OnGpu)

    return found


def compile_folder(folder: Path, shape: ModelShape) -> Program:
    with AdapterFiles.open(folder) as files:
        return detect(files).compile(files, shape)


@pytest.mark.parametrize(("case", "base"), EVERY)
def test_the_program_is_the_same(labs, tmp_path, case, base):
    lab = labs(base)
    folder = tmp_path / "adapter"
    case.make(folder, lab.model())
    shape = lab.engine.decoder.shape
    elsewhere = {name: on_gpu(getattr(shape, name)) for name in ("weight", "bias", "gain")}
    expected = compile_folder(folder, shape).components
    found = compile_folder(folder, replace(shape, **elsewhere)).components
    for one, other in zip(found, expected, strict=True):
        assert type(one) is type(other)
        for part in fields(one):
            mine, theirs = getattr(one, part.name), getattr(other, part.name)
            if isinstance(theirs, Tensor):
                assert type(mine) is Tensor, f"{part.name} of {one.site} is not on the host"
                assert torch.equal(mine, theirs)
            else:
                assert mine == theirs
