import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tests.kinds import hooks
from tests.kinds.case import Case, Reference
from torch import nn
from transformers import PreTrainedModel

HEAD_DIM = 16  # of the tiny bases
CHOSEN = [(2, 0), (0, 3), (2, 1)]  # layer, head


def write(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> None:
    """The folder of an adapter in our format."""
    folder.mkdir(exist_ok=True)
    config = {"kind": "iti", "version": 1, "positions": "all", **config}
    (folder / "turret_adapter.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter.safetensors")


def directions(head_dim: int = HEAD_DIM) -> dict[str, torch.Tensor]:
    """ITI's quantities for the chosen heads."""
    torch.manual_seed(6)
    layers, heads = zip(*CHOSEN, strict=True)
    return {
        "layers": torch.tensor(layers),
        "heads": torch.tensor(heads),
        "directions": nn.functional.normalize(torch.randn(3, head_dim), dim=-1),
        "deviations": torch.rand(3) + 0.1,
    }


def make_directions(folder: Path, base: PreTrainedModel) -> Reference:
    heads = base.config.num_attention_heads
    head_dim = base.config.hidden_size // heads
    found = directions(head_dim)
    write(folder, found, space="pre_o", alpha=5.0)
    for i, (layer, head) in enumerate(CHOSEN):
        shift = torch.zeros(heads, head_dim)
        shift[head] = 5.0 * found["deviations"][i] * found["directions"][i]
        o = base.model.layers[layer].self_attn.o_proj
        hooks.change_input(o, lambda z, shift=shift: z + shift.flatten())
    return hooks.reference(base)


def make_baked(space):
    def write_and_bake(folder: Path, base: PreTrainedModel) -> Reference:
        torch.manual_seed(7)
        biases = {layer: torch.randn(base.config.hidden_size) / 4 for layer in (1, 2)}
        names = {f"model.layers.{i}.self_attn.o_proj.bias": b for i, b in biases.items()}
        write(folder, names, space=space)
        for layer, bias in biases.items():
            o = base.model.layers[layer].self_attn.o_proj
            if space == "post_o":
                o.bias = nn.Parameter(bias)  # what the published models are
            else:
                hooks.change_input(o, lambda z, bias=bias: z + bias)
        return hooks.reference(base)

    return write_and_bake


BASES = ("llama", "llama-biased")
CASES = [
    Case("iti", "iti", make_directions, bases=BASES),
    Case("iti-post_o", "iti", make_baked("post_o"), bases=BASES, may_lack=("layers",)),
    Case("iti-pre_o", "iti", make_baked("pre_o"), bases=BASES, may_lack=("layers",)),
]
