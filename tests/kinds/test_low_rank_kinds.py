"""What HRA, MiSS, GraLoRA, Uni-LoRA and TinyLoRA refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import GraloraConfig, HRAConfig, MissConfig, PeftConfig, TinyLoraConfig, UniLoraConfig
from safetensors.torch import load_file, save_file
from tests.kinds.case import peft_case
from tests.kinds.lab import Lab
from torch import Tensor

from turret_adapters.errors import AdapterError
from turret_adapters.files import AdapterFiles
from turret_adapters.registry import detect

Q = ["q_proj"]
HRA = lambda **fields: HRAConfig(r=4, target_modules=Q, **fields)  # noqa: E731


def zero_column(key: str, tensor: Tensor) -> Tensor:
    return torch.cat([tensor[:, :1] * 0, tensor[:, 1:]], dim=1)


def equal_columns(key: str, tensor: Tensor) -> Tensor:
    return tensor[:, :1].expand_as(tensor).contiguous()


def beyond(key: str, tensor: Tensor) -> Tensor:
    return tensor + 256 if "indices_A" in key else tensor


Change = Callable[[str, Tensor], Tensor] | None
CASES: list[tuple[Callable[[], PeftConfig], dict[str, Any], Change, str]] = [
    (HRA, {}, zero_column, "is zero"),
    (lambda: HRA(apply_GS=True), {}, equal_columns, "depend on each other"),
    (HRA, {"modules_to_save": ["norm"]}, None, "modules_to_save"),
    (HRA, {"bias": "lora_only"}, None, "bias"),
    (
        lambda: MissConfig(r=8, init_weights="bat", target_modules=Q),
        {},
        None,
        "has full rank",
    ),
    (lambda: MissConfig(r=8, target_modules=Q), {"init_weights": "cat"}, None, "none of true"),
    (lambda: MissConfig(r=8, target_modules=Q), {"r": 65}, None, "do not divide"),
    (
        lambda: MissConfig(r=8, mini_r=4, init_weights="mini", target_modules=Q),
        {"mini_r": 5},
        None,
        "do not divide",
    ),
    (lambda: GraloraConfig(r=4, target_modules=Q), {"gralora_k": 3}, None, "does not divide r"),
    (lambda: GraloraConfig(r=3, gralora_k=1, target_modules=Q), {"gralora_k": 3}, None, "inputs"),
    (lambda: GraloraConfig(r=4, hybrid_r=2, target_modules=Q), {"hybrid_r": 0}, None, "general"),
    (lambda: UniLoraConfig(target_modules=Q), {}, None, "save_indices is off"),
    (lambda: UniLoraConfig(save_indices=True, target_modules=Q), {}, beyond, "points outside"),
    (
        lambda: TinyLoraConfig(save_projection=False, target_modules=Q),
        {},
        None,
        "save_projection is off",
    ),
    (lambda: TinyLoraConfig(target_modules=Q), {"weight_tying": 1.5}, None, "between 0 and 1"),
]


@pytest.mark.parametrize(
    ("config", "fields", "change", "text"), CASES, ids=[case[3] for case in CASES]
)
@pytest.mark.filterwarnings("ignore")
def test_refusals(
    labs: Callable[[str], Lab],
    tmp_path: Path,
    config: Callable[[], PeftConfig],
    fields: dict[str, Any],
    change: Change,
    text: str,
) -> None:
    lab = labs("llama")
    peft_case("here", "here", config).make(tmp_path, lab.model())
    path, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    if change is not None:
        save_file({k: change(k, t) for k, t in load_file(weights).items()}, weights)
    with AdapterFiles.open(tmp_path) as files, pytest.raises(AdapterError) as caught:
        detect(files).compile(files, lab.engine.decoder.shape)
    assert text in str(caught.value)
    assert caught.value.fix
