"""Adapter folders for the tests of one kind: made by PEFT, then changed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig
from safetensors.torch import load_file, save_file
from tests.kinds.case import Reference, peft_case
from tests.kinds.lab import Lab
from torch import Tensor

from turret_adapters.errors import AdapterError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def make(lab: Lab, folder: Path, config: Callable[[], PeftConfig], **fields: Any) -> Reference:
    """An adapter by PEFT (see `peft_case`), and what it computes."""
    return peft_case("", "", config, **fields).make(folder, lab.model())


def edit_config(folder: Path, **fields: Any) -> None:
    """Set fields of its adapter_config.json."""
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Its tensors by name."""
    return load_file(folder / WEIGHTS)


def edit_tensors(folder: Path, **changed: Tensor | None) -> None:
    """Replace tensors by the end of their names; None removes one."""
    tensors = tensors_of(folder)
    for end, tensor in changed.items():
        (key,) = [key for key in tensors if key.endswith(end)]
        del tensors[key]
        if tensor is not None:
            tensors[key] = tensor.contiguous()
    save_file(tensors, folder / WEIGHTS)


def refusal(lab: Lab, folder: Path) -> AdapterError:
    """The error that loading it raises."""
    with pytest.raises(AdapterError) as caught:
        lab.load(folder)
    assert all((caught.value.what, caught.value.why, caught.value.fix))
    return caught.value
