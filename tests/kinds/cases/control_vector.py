from pathlib import Path

import gguf
import numpy as np
import torch
from tests.kinds import hooks
from tests.kinds.case import Case, Reference, spread
from transformers import PreTrainedModel


def write(path: Path, directions: dict[int, np.ndarray], **fields: str) -> None:
    """As repeng's `ControlVector.export_gguf` does."""
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(directions))
    for key, value in fields.items():
        writer.add_string(key, value)
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make(dtype):
    def write_and_hook(folder: Path, base: PreTrainedModel) -> Reference:
        torch.manual_seed(4)
        folder.mkdir()
        # repeng's order: from the last block on; never the first
        size, scale = base.config.hidden_size, spread(base) / 4
        directions = {i: (torch.randn(size) * scale).numpy().astype(dtype) for i in (2, 1)}
        write(folder / "happy.gguf", directions)
        for i, direction in directions.items():
            added = torch.from_numpy(direction).float()
            hooks.change_output(base.model.layers[i], lambda h, added=added: h + added)
        return hooks.reference(base)

    return write_and_hook


CASES = [
    # GGUF; its own damages are in test_control_vector.py and test_gguf_file.py.
    Case(
        "control_vector",
        "control_vector",
        make(np.float32),
        bases=("llama", "llama-biased", "gemma"),
        stores_tensors=False,
    ),
    Case("control_vector-f16", "control_vector", make(np.float16), stores_tensors=False),
]
