"""Composable sparse fine-tuning in safetensors; the reference changes transformers' parameters."""

import torch
from safetensors.torch import save_file
from tests.kinds.case import Case, spread


def encode(name, diff):
    """As published: positions in column-major order, by their steps."""
    flat = diff.T.reshape(-1) if diff.dim() == 2 else diff
    places = flat.nonzero().flatten()
    steps = torch.cat([places[:1], places.diff()])
    return {f"diffs.{name}.steps": steps, f"diffs.{name}.values": flat[places].contiguous()}


def make(diffs, absolutes=()):
    """Changes parameters whose names end with `diffs` in part, and replaces others."""

    def write(folder, base):
        torch.manual_seed(5)
        tensors = {}
        with torch.no_grad():
            for name, parameter in base.named_parameters():
                noise = torch.randn_like(parameter) * 0.3 * spread(base)
                if name.endswith(diffs):
                    noise *= torch.rand_like(noise) < (0.05 if noise.dim() == 2 else 0.3)
                    noise.view(-1)[-1] = 0.2
                    tensors |= encode(name, noise)
                elif absolutes and name.endswith(absolutes):
                    tensors[f"abs.{name}"] = (parameter + noise).contiguous()
                else:
                    continue
                parameter += noise
        folder.mkdir()
        save_file(tensors, folder / "pytorch_diff.safetensors")

        @torch.no_grad()
        def logits(tokens):
            return base(tokens[None]).logits[0].float()

        return logits

    return write


CASES = [
    Case("sparse_ft", "sparse_ft", make(("_proj.weight", "lm_head.weight"))),
    Case("sparse_ft-norms", "sparse_ft", make(("norm.weight",))),
    Case("sparse_ft-layer-norms", "sparse_ft", make(("layernorm.weight",)), bases=("gemma",)),
    Case("sparse_ft-biases", "sparse_ft", make(("q_proj.bias", "v_proj.weight")), bases=("qwen",)),
    Case(
        "sparse_ft-embedding",
        "sparse_ft",
        make(("embed_tokens.weight", "o_proj.weight")),
        bases=("llama", "tied", "gemma"),
    ),
    Case(
        "sparse_ft-abs",
        "sparse_ft",
        make(
            ("q_proj.weight",), ("k_proj.bias", "up_proj.weight", "lm_head.weight", "norm.weight")
        ),
        bases=("qwen",),
        may_lack=("abs.",),
    ),
    Case(
        "sparse_ft-abs-embedding",
        "sparse_ft",
        make(("q_proj.weight",), ("embed_tokens.weight",)),
        bases=("llama", "tied"),
        may_lack=("abs.",),
    ),
]
