"""Random damage to an adapter of every kind: it compiles, or it is an AdapterError.

Deterministic, as tests/adapters/test_fuzz.py. `TURRET_FUZZ_CASES=100000` spreads so many over the
kinds.
"""

from __future__ import annotations

import os
import random
import time

import pytest
import torch
from tests.adapters.test_fuzz import (
    apply,
    damage_bytes,
    damage_config,
    damage_header,
    damage_values,
)
from tests.kinds.lab import CASES

from turret_adapters.errors import AdapterError
from turret_adapters.loading import read_adapter

SLOW_S = 5  # of the processor; the machine may be busy
FIRST_OF_KIND = list({case.kind: case for case in reversed(CASES)}.values())
EACH = max(40, int(os.environ.get("TURRET_FUZZ_CASES", "0")) // len(FIRST_OF_KIND))


def damage(rng, name, raw):
    """Damage that suits a file."""
    if name.endswith(".json"):
        return apply(rng, rng.choice([damage_bytes, damage_config, damage_config]), raw)
    if name.endswith(".safetensors"):
        kinds = [damage_bytes, damage_header, damage_header, damage_values]
        return apply(rng, rng.choice(kinds), raw)
    return damage_bytes(rng, raw)


@pytest.mark.parametrize("case", FIRST_OF_KIND, ids=lambda case: case.kind)
@pytest.mark.filterwarnings("ignore:Possible nested set")  # Python's, of a damaged pattern
def test_only_adapter_errors_come_out(labs, tmp_path, case):
    lab = labs(case.bases[0])
    folder = tmp_path / "adapter"
    case.make(folder, lab.model())
    files = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    refused = 0
    for number in range(EACH):
        rng = random.Random(f"{case.kind}-{number}")
        changed = rng.choice([path for path in files for _ in range(1 + (path.suffix == ".json"))])
        for path, raw in files.items():
            path.write_bytes(raw)
        changed.write_bytes(damage(rng, changed.name, files[changed]))
        began = time.process_time()
        try:
            _, program = read_adapter(folder, lab.engine.decoder.shape, torch.float32)
            assert program is not None
            assert program.components or program.num_virtual_tokens
            for component in program.components:
                for tensor in component.tensors:
                    assert not tensor.is_floating_point() or tensor.isfinite().all()
        except AdapterError as error:
            refused += 1
            if not all((error.what, error.why, error.fix)) or len(str(error).encode()) > 4000:
                raise AssertionError(number, error.what, error.why, error.fix) from error
        except BaseException as error:  # raised again, with what it takes to repeat it
            error.add_note(f"case {number} of {case.kind}")
            raise
        assert time.process_time() - began < SLOW_S, number
    assert refused > EACH / 4
