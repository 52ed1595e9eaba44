"""GGUF holds no safetensors, so what the contract does to those is done here to a GGUF file."""

import gguf
import numpy as np
import pytest
from tests.kinds.cases.control_vector import write

from turret_adapters.digest import content_digest
from turret_adapters.errors import (
    AdapterError,
    AdapterMalformed,
    AdapterNotFound,
    AdapterUnsupported,
)
from turret_adapters.files import AdapterFiles
from turret_adapters.inspect import describe
from turret_adapters.kinds.control_vector import KIND

ONES = np.ones(64, dtype=np.float32)


@pytest.fixture
def lab(labs):
    return labs("llama")


def digest(folder):
    with AdapterFiles.open(folder) as files:
        return content_digest(KIND, files)


def test_offsets_of_the_named_blocks(lab, tmp_path):
    write(tmp_path / "v.gguf", {1: ONES, 2: 2 * ONES})
    loaded = lab.load(tmp_path)
    assert loaded.primitives == ("Offset",)
    assert loaded.targets == ("down_proj",)
    assert loaded.notes == ("made for models of the type 'llama'",)


@pytest.mark.parametrize(
    ("directions", "error", "why"),
    [
        ({0: ONES, 1: ONES}, AdapterUnsupported, "'direction.0', which llama.cpp refuses"),
        ({3: ONES}, AdapterUnsupported, "this base's last block is 2"),
        ({1: ONES[:63]}, AdapterUnsupported, r"shape \[63\], expected \[64\]"),
        ({1: ONES.reshape(8, 8)}, AdapterUnsupported, "shape"),
        ({1: ONES * np.inf}, AdapterMalformed, "NaN or infinity"),
        ({1: ONES * np.nan}, AdapterMalformed, "NaN or infinity"),
        ({1: ONES.astype(np.float64)}, AdapterUnsupported, "float32"),
        ({1: ONES.astype(np.int32)}, AdapterUnsupported, "float32"),
        ({}, AdapterUnsupported, "no module is matched"),
        ({1: ONES, "x": ONES}, AdapterUnsupported, "'direction.x'"),
        ({1: ONES, "01": ONES}, AdapterUnsupported, "'direction.01'"),
    ],
)
def test_refusals(lab, tmp_path, directions, error, why):
    write(tmp_path / "v.gguf", directions)
    with pytest.raises(error, match=why):
        lab.load(tmp_path)


def test_a_field_that_may_mean_something(lab, tmp_path):
    write(tmp_path / "v.gguf", {1: ONES}, **{"controlvector.normalize": "yes"})
    with pytest.raises(AdapterUnsupported, match="normalize"):
        lab.load(tmp_path)
    write(tmp_path / "v.gguf", {1: ONES}, **{"controlvector.method": "pca", "other": "x"})
    lab.load(tmp_path)


def test_other_gguf_files(lab, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", ONES)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(AdapterUnsupported, match=r"architecture of 'm\.gguf' is 'llama'"):
        lab.load(tmp_path)


def test_a_truncated_file(lab, tmp_path):
    path = tmp_path / "v.gguf"
    write(path, {1: ONES})
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(AdapterMalformed, match="truncated"):
        lab.load(tmp_path)


def test_the_digest_covers_the_values_and_not_the_name(tmp_path):
    folders = [tmp_path / str(i) for i in range(3)]
    for folder, name, values in zip(folders, "aab", (ONES, 2 * ONES, ONES), strict=True):
        folder.mkdir()
        write(folder / f"{name}.gguf", {1: values})
    digests = [digest(folder) for folder in folders]
    assert digests[0] == digests[2] != digests[1]


def test_a_folder_with_a_config_is_not_this_kind(tmp_path):
    write(tmp_path / "v.gguf", {1: ONES})
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with AdapterFiles.open(tmp_path) as files:
        assert not KIND.detect(files)


def test_inspection(tmp_path):
    write(tmp_path / "v.gguf", {1: ONES, 5: ONES})
    report = describe(tmp_path)
    assert report["refusal"] is None
    assert report["kind"] == "control_vector"
    assert (report["num_tensors"], report["dtypes"]) == (2, ["float32"])
    assert report["modules"] == {"down_proj": {"ranks": [], "layers": [1, 5]}}


def test_an_empty_folder(lab, tmp_path):
    with pytest.raises(AdapterNotFound):
        lab.load(tmp_path)
    assert issubclass(AdapterNotFound, AdapterError)
