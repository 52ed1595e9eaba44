"""MiSS as PEFT saves it, and Bone, its older name (Kang and Yin, 2024).

Every shard of r neighbouring inputs has the same change: `W'[:, i] = W[:, i] + D[:, i mod r]`, so
the change is `D^T A` with A a row of identities. With `init_weights` "mini" D itself repeats along
the outputs.
"""

from __future__ import annotations

import torch

from turret_adapters.files import AdapterFiles
from turret_adapters.peft.low_rank import Factors, LowRankFormat
from turret_adapters.peft.roles import guess_sizes, simple_role
from turret_adapters.peft.tensors import PeftTensors, is_peft
from turret_adapters.spec import Kind, ModelShape, Program, Site

_FORMAT = LowRankFormat(
    "miss",
    simple_role({"miss_block": "block", "bone_block": "block"}, suffixes=frozenset()),
    ("block",),
    frozenset({"mini_r", "miss_dropout"}),
    ("MiSS_only", "miss_only", "bone_only"),
)


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    config = _FORMAT.config(files)
    rank = config.integer("r", 64, 1)
    init = config.get("init_weights")
    if init == "bat":
        raise config.unsupported(
            "init_weights is 'bat': its change is a product with the base's weight and has full "
            "rank",
            "Train it with init_weights true, or serve the merged model.",
        )
    if init not in (None, True, False, "mini"):
        raise config.malformed(f"init_weights is {init!r:.80}, none of true, false, 'mini', 'bat'")
    mini = config.integer("mini_r", 1, 1) if init == "mini" else 0

    def read(tensors: PeftTensors, site: Site, fan_in: int, fan_out: int) -> Factors:
        found = tensors.at(site)
        if rank > fan_in or (mini and fan_out % mini):
            raise tensors.wrong_base(
                f"{found.path} has {fan_in} inputs and {fan_out} outputs, which r {rank} and "
                f"mini_r {mini} do not divide into shards"
            )
        block = tensors.read(found.keys["block"], (rank, mini or fan_out), rank_dim=0)
        if mini:
            block = block.repeat(1, fan_out // mini)
        shards = torch.eye(rank, dtype=block.dtype).repeat(1, -(-fan_in // rank))
        return shards[:, :fan_in], block

    return _FORMAT.compile(files, shape, config, read)


def _detect(files: AdapterFiles) -> bool:
    return is_peft(files, "MISS") or is_peft(files, "BONE")


def _guess_shape(files: AdapterFiles) -> ModelShape:
    return guess_sizes(
        files, _FORMAT.role_of, lambda shapes: (0, (shapes.get("block") or (0,))[-1])
    )


KIND = Kind("miss", _detect, _compile, _guess_shape)
