"""Damaged, foreign and hostile adapters over HTTP: refused, and nothing of them stays."""

from __future__ import annotations

import json
import os
import struct

import pytest
from safetensors.numpy import load_file, save_file

pytestmark = pytest.mark.e2e

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def set_config(folder, **fields):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def set_weights(folder, change):
    save_file({k: change(v) for k, v in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


def without_config(folder):
    (folder / CONFIG).unlink()


def without_weights(folder):
    (folder / WEIGHTS).unlink()


def a_pickle(folder):
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def truncated(folder):
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size // 2)


def a_header_of_terabytes(folder):
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 42) + b"{}")


def a_tensor_of_terabytes(folder):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    entry = {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}
    header = json.dumps({name: entry}).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header)


def not_a_number(folder):
    set_weights(folder, lambda values: values * float("nan"))


def another_base(folder):
    set_weights(folder, lambda values: values.repeat(2, axis=1))


def another_rank(folder):
    set_config(folder, r=4)


def no_module_of_this_model(folder):
    set_config(folder, target_modules=["query_key_value"])
    weights = load_file(folder / WEIGHTS)
    renamed = {k.replace("q_proj", "query_key_value"): v for k, v in weights.items()}
    save_file(renamed, folder / WEIGHTS)


def a_config_that_is_not_json(folder):
    (folder / CONFIG).write_text("{'r': 8}")


def a_method_that_is_not_served(folder):
    set_config(folder, arrow_config={"top_k": 2})


def weights_that_never_come(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def a_link_to_the_outside(folder):
    outside = folder.parent.parent / f"{folder.name}-outside"
    folder.rename(outside)
    folder.symlink_to(outside)


def weights_linked_to_the_outside(folder):
    outside = folder.parent.parent / f"{folder.name}-{WEIGHTS}"
    (folder / WEIGHTS).rename(outside)
    (folder / WEIGHTS).symlink_to(outside)


DAMAGES = {
    without_config: 404,
    without_weights: 404,
    a_pickle: 422,
    truncated: 400,
    a_header_of_terabytes: 400,
    a_tensor_of_terabytes: 400,
    not_a_number: 400,
    another_base: 422,
    another_rank: 400,
    no_module_of_this_model: 422,
    a_config_that_is_not_json: 400,
    a_method_that_is_not_served: 422,
    weights_that_never_come: 404,
    a_link_to_the_outside: 403,
    weights_linked_to_the_outside: 403,
}


@pytest.fixture(scope="module")
def small_lora(adapters, save_lora):
    """Write a valid adapter of one linear where the server may read."""
    root = next(iter(adapters.values())).parent
    return lambda name: save_lora(root / name, 0, targets=("q_proj",), layers=(0,))


async def refusal(http, body):
    before = (await http.get("/v1/adapters")).json()
    response = await http.post("/v1/load_lora_adapter", json=body)
    assert (await http.get("/v1/adapters")).json() == before
    error = response.json()["error"]
    assert error["what"]
    assert error["why"]
    assert error["fix"]
    return response.status_code, error


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_it_is_refused_and_leaves_no_trace(http, server, small_lora, damage):
    folder = small_lora(f"hostile-{damage.__name__}")
    resident = server.metrics()["turret_adapters_resident"]
    damage(folder)
    status, error = await refusal(http, {"lora_name": "hostile", "lora_path": str(folder)})
    assert status == DAMAGES[damage], error
    assert server.metrics()["turret_adapters_resident"] == resident
    assert server.metrics()["turret_engine_up"] == 1


async def test_a_folder_outside_the_roots_is_refused(http, save_lora, tmp_path):
    folder = save_lora(tmp_path / "elsewhere", 0, targets=("q_proj",), layers=(0,))
    for path in (str(folder), f"../{tmp_path.name}/elsewhere", "/etc"):
        status, error = await refusal(http, {"lora_name": "hostile", "lora_path": path})
        assert (status, error["param"]) == (403, "lora_path")


@pytest.mark.parametrize("name", ["", "a/b", "r8+r16", "r8:0.5", "a b", "x" * 200, "nul\0"])
async def test_a_name_that_could_not_be_asked_for_is_refused(http, adapters, name):
    status, error = await refusal(http, {"lora_name": name, "lora_path": str(adapters["r8"])})
    assert (status, error["param"]) == (400, "lora_name")


async def test_the_name_of_the_base_is_taken(http, base, adapters):
    status, _ = await refusal(http, {"lora_name": base, "lora_path": str(adapters["r8"])})
    assert status == 409
