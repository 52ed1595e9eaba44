import json
from pathlib import Path

from peft import MissConfig
from safetensors.torch import load_file, save_file
from tests.kinds.case import Case, Reference, peft_case
from transformers import PreTrainedModel

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

MISS = peft_case("miss", "miss", lambda: MissConfig(r=4, target_modules=LINEARS))


def bone(folder: Path, base: PreTrainedModel) -> Reference:
    """MiSS under its older name: the same function, other words."""
    reference = MISS.make(folder, base)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = {k.replace("miss_block", "bone_block"): t for k, t in load_file(weights).items()}
    save_file(tensors, weights)
    fields = json.loads(config.read_text())
    kept = ("r", "target_modules", "exclude_modules", "bias", "init_weights", "modules_to_save")
    config.write_text(json.dumps({k: fields[k] for k in kept} | {"peft_type": "BONE"}))
    return reference


CASES = [
    MISS,
    Case("miss-bone", "miss", bone),
    peft_case(
        "miss-shards-with-a-rest",
        "miss",
        lambda: MissConfig(r=7, target_modules=["o_proj", "down_proj"], init_weights=False),
    ),
    peft_case(
        "miss-mini",
        "miss",
        lambda: MissConfig(
            r=6, mini_r=8, init_weights="mini", target_modules=["q_proj", "up_proj"]
        ),
    ),
    peft_case(
        "miss-bias",
        "miss",
        lambda: MissConfig(r=2, target_modules=["q_proj", "o_proj"], bias="all"),
        bases=("qwen",),
        may_lack=("bias",),
    ),
]
