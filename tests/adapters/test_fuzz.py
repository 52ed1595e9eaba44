"""Random damage to a valid adapter: it compiles to something sound, or it is an AdapterError.

Deterministic: case n is always the same damage. `TURRET_FUZZ_CASES=200000` runs longer, and
`TURRET_FUZZ_FIRST=n` begins at case n.
"""

import json
import os
import random
import struct
import time

import pytest
import torch

from turret_adapters.components import LowRank
from turret_adapters.errors import AdapterError
from turret_adapters.inspect import describe
from turret_adapters.loading import read_adapter

FIRST = int(os.environ.get("TURRET_FUZZ_FIRST", "0"))
CASES = int(os.environ.get("TURRET_FUZZ_CASES", "2000"))
BATCH = 500
SLOW_S = 5  # no damage may make the loader work for long

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
VALUES = [
    None, True, False, 0, 1, -1, 2, 3, 4, 8, 0.5, -0.0, 1e308, 10**30, 2**31, 2**63, 2**64, "", "a",
    "q_proj", ".*", "(a+)+$", "(", "[", "\\", "(?i)x", "all-linear", "lora_only", "all", "none",
    "pissa", "model.layers.0.self_attn.q_proj", "x" * 3000, "\n", "é", "\u202e", [], {}, [None],
    [0], [1, 2], ["q_proj"], ["q_proj", "v_proj"], ["q_proj", 3], {"q_proj": 2}, {".*": 4},
    {"(": 1},
    {"q_proj": None}, [[]], {"a": {"b": {}}}, "F32", "BF16", "I8", [4, 32], [32, 4], [-1], [0, 0],
    [2**40, 2**40], [0, 512], [512, 0], [0], "__metadata__",
]  # fmt: skip


def split(weights):
    """The header and the data of a safetensors file."""
    (length,) = struct.unpack("<Q", weights[:8])
    return json.loads(weights[8 : 8 + length]), weights[8 + length :]


def join(header, data):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def damage_bytes(rng, raw):
    """Flip, cut, insert, repeat or overwrite some bytes."""
    raw = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(raw) + 1)
        match rng.randrange(7):
            case 0 if raw:
                raw[at % len(raw)] ^= 1 << rng.randrange(8)
            case 1:
                del raw[at:]
            case 2:
                del raw[at : at + rng.randrange(1, 20)]
            case 3:
                raw[at:at] = rng.randbytes(rng.randrange(1, 20))
            case 4:
                raw[at:at] = raw[at : at + rng.randrange(1, 200)]
            case 5:
                raw[at : at + 8] = rng.choice([b"\0" * 8, b"\xff" * 8, b'"' * 8, b"[" * 8])
            case _:
                raw[:8] = struct.pack("<Q", rng.choice([0, 1, len(raw), 2**32, 2**63, 2**64 - 1]))
    return bytes(raw)


def damage_json(rng, value):
    """Replace, drop, add, rename or exchange something somewhere inside."""
    if isinstance(value, dict) and value:
        value = dict(value)
        key = rng.choice(list(value))
        match rng.randrange(6):
            case 0:
                value[key] = rng.choice(VALUES)
            case 1:
                del value[key]
            case 2:
                value[rng.choice([str(rng.choice(VALUES)), key + "x", key[:-1]])] = value[key]
            case 3:
                value[damage_name(rng, key)] = value.pop(key)
            case 4:
                other = rng.choice(list(value))
                value[key], value[other] = value[other], value[key]
            case _:
                value[key] = damage_json(rng, value[key])
        return value
    if isinstance(value, list) and value:
        value = list(value)
        at = rng.randrange(len(value))
        value[at] = damage_json(rng, value[at])
        return value
    if type(value) is int and rng.random() < 0.7:
        return value + rng.choice([-(2**32), -4, -1, 1, 4, 2**32])
    return rng.choice(VALUES)


def damage_name(rng, name):
    """A name that is nearly right."""
    parts = name.split(".")
    at = rng.randrange(len(parts))
    parts[at] = rng.choice(
        ["layers", "0", "7", "q_proj", "lora_A", "weight", "bias", "default", ""]
    )
    return ".".join(parts)


def damage_header(rng, weights):
    """Structural damage to the header."""
    header, data = split(weights)
    return join(damage_json(rng, header), data)


def damage_values(rng, weights):
    """Odd numbers in the data."""
    header, data = split(weights)
    data = bytearray(data)
    for _ in range(rng.choice([1, 3, 50])):
        at = rng.randrange(len(data) // 4) * 4
        odd = [float("nan"), float("inf"), -float("inf"), 3e38, 1e-45, 0.0, 1.0]
        data[at : at + 4] = struct.pack("<f", rng.choice(odd))
    return join(header, bytes(data))


def damage_config(rng, config):
    """Structural damage to the config."""
    return json.dumps(damage_json(rng, json.loads(config))).encode()


def damaged(rng, config, weights):
    """One or two kinds of damage to the two files."""
    for _ in range(rng.choice([1, 1, 2])):
        if rng.random() < 0.5:
            config = apply(rng, rng.choice([damage_bytes, damage_config, damage_config]), config)
        else:
            kinds = [damage_bytes, damage_header, damage_header, damage_values]
            weights = apply(rng, rng.choice(kinds), weights)
    return config, weights


def apply(rng, damage, raw):
    """Damage that needs structure becomes damage of bytes where none is left."""
    try:
        return damage(rng, raw)
    except (ValueError, struct.error):
        return damage_bytes(rng, raw)


def check_sound(program, shape):
    """What was not refused can be served."""
    assert program.components
    for component in program.components:
        fan_in, fan_out = shape.dims[component.site.module]
        assert component.site.layer < shape.num_layers
        if isinstance(component, LowRank):
            assert component.a.shape == (component.rank, fan_in)
            assert component.b.shape == (component.rank, fan_out)
            assert torch.isfinite(component.a).all()
            assert torch.isfinite(component.b).all()
        else:
            assert component.vector.shape == (fan_out,)
            assert torch.isfinite(component.vector).all()


def is_served(path, shape):
    """Whether it is accepted; refusals say what, why and how to fix it, in few words."""
    try:
        _, program = read_adapter(path, shape, torch.float32)
    except AdapterError as error:
        parts = error.what, error.why, error.fix
        if not all(parts) or len(str(error).encode()) > 4000:
            raise AssertionError(parts) from error
        return False
    check_sound(program, shape)
    return True


@pytest.mark.parametrize("start", range(FIRST, FIRST + CASES, BATCH))
@pytest.mark.filterwarnings("ignore:Possible nested set")  # Python's, of a damaged pattern
def test_only_adapter_errors_come_out(lab, shape, tmp_path, start):
    lab.save_lora(
        tmp_path,
        r=4,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"layers.1.*v_proj": 2},
        alpha_pattern={"v_proj": 3},
        layers_to_transform=[0, 1],
        lora_bias=True,
    )
    valid = (tmp_path / CONFIG).read_bytes(), (tmp_path / WEIGHTS).read_bytes()
    served = 0
    for case in range(start, min(start + BATCH, FIRST + CASES)):
        rng = random.Random(case)
        config, weights = damaged(rng, *valid)
        (tmp_path / CONFIG).write_bytes(config)
        (tmp_path / WEIGHTS).write_bytes(weights)
        began = time.perf_counter()
        try:
            served += is_served(tmp_path, shape)
            if case % 10 == 0:
                json.dumps(describe(tmp_path))
        except BaseException as error:  # raised again, with what it takes to repeat it
            error.add_note(f"case {case}")
            raise
        assert time.perf_counter() - began < SLOW_S, case
    # Some damage is none (a renamed provenance field), most is.
    assert 0 < served < BATCH / 2 or CASES < BATCH
