"""A header is believed only where the file bears it out."""

import json
import math
import struct
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

from turret_adapters import tensor_file
from turret_adapters.errors import AdapterError, AdapterMalformed, AdapterUnsupported
from turret_adapters.files import AdapterFiles, FileLimits
from turret_adapters.tensor_file import is_finite, sample_ranges

NAME = "adapter_model.safetensors"


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def write(folder, header, data=b"", length=None):
    """A safetensors file with any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    prefix = struct.pack("<Q", len(text) if length is None else length)
    (folder / NAME).write_bytes(prefix + text + data)


def open_file(folder, **limits):
    with AdapterFiles.open(folder, limits=FileLimits(**limits)) as files:
        return files.tensors(NAME)


def test_reads_what_safetensors_wrote(tmp_path):
    tensors = {
        "f32": torch.randn(3, 4),
        "bf16": torch.randn(5).bfloat16(),
        "f16": torch.randn(2, 1, 2).half(),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 7),
        "i64": torch.arange(6),
        "u8": torch.arange(3, dtype=torch.uint8),
    }
    save_file(tensors, tmp_path / NAME, metadata={"format": "pt"})
    with AdapterFiles.open(tmp_path) as files:
        file = files.tensors(NAME)
        assert file.infos.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert file.infos[name].shape == tuple(tensor.shape)
            assert torch.equal(file.read(name), tensor)
            raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            assert b"".join(bytes(piece) for piece in file.chunks(name)) == raw


@pytest.mark.parametrize("count", [0, 1, 131_072, 131_073, 5_000_000])
def test_a_sample_is_spread_over_the_tensor(tmp_path, count):
    ranges = sample_ranges(count)
    assert all(last <= first for (_, last), (first, _) in pairwise(ranges))
    assert [ranges[0][0], ranges[-1][1]] == [0, count] if count else not ranges
    assert sum(last - first for first, last in ranges) == min(count, 131_072)
    tensor = torch.arange(count, dtype=torch.int32)
    save_file({"x": tensor}, tmp_path / NAME)
    with AdapterFiles.open(tmp_path) as files:
        found = files.tensors(NAME).sample("x").tolist()
    assert found == [i for first, last in ranges for i in range(first, last)]


def test_large_tensors_are_hashed_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "_CACHED_BYTES", 1000)
    monkeypatch.setattr(tensor_file, "_CHUNK_BYTES", 1 << 20)
    tensor = torch.randn(700_000)  # more than two pieces
    save_file({"x": tensor}, tmp_path / NAME)
    with AdapterFiles.open(tmp_path) as files:
        pieces = [bytes(piece) for piece in files.tensors(NAME).chunks("x")]
    assert len(pieces) == 3
    assert b"".join(pieces) == tensor.numpy().tobytes()


def test_neighbours_come_in_one_piece(tmp_path):
    tensors = {name: torch.randn(5) for name in "abcd"}
    save_file(tensors, tmp_path / NAME)
    with AdapterFiles.open(tmp_path) as files:
        file = files.tensors(NAME)
        pieces = [bytes(piece) for piece in file.all_chunks(["a", "b", "d", "c"])]
    raw = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    assert [p for p in pieces if p] == [raw["a"] + raw["b"], raw["d"], raw["c"]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -7.5])
def test_the_largest_magnitude_shows_what_is_not_finite(tmp_path, value):
    save_file({"a": torch.ones(3), "b": torch.tensor([0.5, value])}, tmp_path / NAME)
    with AdapterFiles.open(tmp_path) as files:
        largest = files.tensors(NAME).largest
    assert largest == abs(value) or (math.isnan(value) and math.isnan(largest))


TWO = {"a": entry([2], 0, 8), "b": entry([2], 8, 16)}
HEADERS = {
    "shape larger than the data": ({"a": entry([3], 0, 8)}, 8, "span 8"),
    "terabytes": ({"a": entry([1 << 40, 4], 0, 8)}, 8, "takes 17592186044416 bytes"),
    "terabytes with matching offsets": ({"a": entry([1 << 40], 0, 1 << 42)}, 8, "truncated"),
    "beyond the end": ({"a": entry([4], 0, 16)}, 8, "truncated"),
    "overlap": (TWO | {"b": entry([2], 4, 12)}, 16, "overlaps"),
    "the same place": (TWO | {"b": entry([2], 0, 8)}, 8, "overlaps"),
    "gap": (TWO | {"b": entry([2], 12, 20)}, 20, "gap"),
    "data before the first": ({"a": entry([2], 4, 12)}, 12, "gap"),
    "data after the last": (TWO, 20, "bytes long"),
    "backwards": ({"a": entry([2], 8, 0)}, 8, "data_offsets"),
    "negative offset": ({"a": entry([2], -8, 0)}, 8, "data_offsets"),
    "negative shape": ({"a": entry([-2], 0, 8)}, 8, "shape"),
    "fractional shape": ({"a": entry([2.0], 0, 8)}, 8, "shape"),
    "true as a number": ({"a": entry([True], 0, 4)}, 4, "shape"),
    "huge number": ({"a": entry([10**100], 0, 4)}, 4, "shape"),
    "product overflows": ({"a": entry([1 << 32, 1 << 32, 0], 0, 4)}, 4, "takes 0 bytes"),
    "many dimensions": ({"a": entry([1] * 9, 0, 4)}, 4, "shape"),
    "shape is text": ({"a": entry("2", 0, 8)}, 8, "shape"),
    "three offsets": ({"a": entry([2], 0, 8) | {"data_offsets": [0, 4, 8]}}, 8, "data_offsets"),
    "missing field": ({"a": {"dtype": "F32", "shape": [2]}}, 8, "dtype, shape and data_offsets"),
    "extra field": ({"a": entry([2], 0, 8) | {"x": 1}}, 8, "dtype, shape and data_offsets"),
    "entry is a list": ({"a": [1]}, 0, "dtype, shape and data_offsets"),
    "metadata is a list": ({"__metadata__": ["x"]}, 0, "__metadata__"),
    "metadata holds numbers": ({"__metadata__": {"x": 1}}, 0, "__metadata__"),
    "not an object": (b"[1]", 0, "a list, not an object"),
    "not JSON": (b"{nonsense", 0, "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', 0, "not valid JSON"),
    "duplicate key": (b'{"a": {}, "a": {}}', 0, "duplicate key"),
    "NaN": (b'{"a": NaN}', 0, "NaN is not JSON"),
    "lone surrogate": (rb'{"\ud800": {}}', 0, "not valid JSON"),
    "deep": (b'{"a": ' + b"[" * 3000 + b"]" * 3000 + b"}", 0, "deeper"),
    "deeper than the stack": (b"[" * 200_000, 0, "deeper"),
    "long number": (b'{"a": ' + b"9" * 5000 + b"}", 0, "not valid JSON"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_lie(tmp_path, case):
    header, num_bytes, text = HEADERS[case]
    write(tmp_path, header, bytes(num_bytes))
    with pytest.raises(AdapterMalformed) as caught:
        open_file(tmp_path)
    assert text in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("length", [9, 1 << 40, (1 << 64) - 1])
def test_header_length_beyond_the_file(tmp_path, length):
    write(tmp_path, b"{}", length=length)
    with pytest.raises(AdapterMalformed, match=f"claims {length} bytes, the file has 2"):
        open_file(tmp_path)


@pytest.mark.parametrize("size", range(8))
def test_files_too_short_for_a_length(tmp_path, size):
    (tmp_path / NAME).write_bytes(bytes(size))
    with pytest.raises(AdapterMalformed, match=f"{size} bytes long"):
        open_file(tmp_path)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F4", "", 3, None, ["F32"]])
def test_unknown_dtypes(tmp_path, dtype):
    write(tmp_path, {"a": entry([1], 0, 1, dtype)}, bytes(1))
    with pytest.raises(AdapterUnsupported, match="dtype"):
        open_file(tmp_path)


def test_limits(tmp_path):
    write(tmp_path, TWO, bytes(16))
    with pytest.raises(AdapterMalformed, match="lists 2 tensors, more than 1"):
        open_file(tmp_path, max_tensors=1)
    with pytest.raises(AdapterMalformed, match="header of"):
        open_file(tmp_path, max_header_bytes=10)
    with pytest.raises(AdapterMalformed, match="at most 50"):
        open_file(tmp_path, max_file_bytes=50)


def test_every_truncation_is_noticed(tmp_path):
    save_file({"a": torch.randn(3), "b": torch.randn(2)}, tmp_path / NAME)
    whole = (tmp_path / NAME).read_bytes()
    for size in range(len(whole)):
        (tmp_path / NAME).write_bytes(whole[:size])
        with pytest.raises(AdapterError):
            open_file(tmp_path)


def test_a_file_that_shrinks_while_it_is_read_is_an_error_not_a_crash(tmp_path):
    save_file({"x": torch.randn(100_000)}, tmp_path / NAME)
    with AdapterFiles.open(tmp_path) as files:
        file = files.tensors(NAME)
        with (tmp_path / NAME).open("r+b") as writer:
            writer.truncate(1000)
        with pytest.raises(AdapterMalformed, match="shrank while read"):
            file.read("x")
        with pytest.raises(AdapterMalformed, match="changed while it was read"):
            files.check_unchanged()


def test_messages_stay_short(tmp_path):
    write(tmp_path, {"n" * 100_000: entry([2], 0, 4)}, bytes(4))
    with pytest.raises(AdapterMalformed) as caught:
        open_file(tmp_path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("odd", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_one_odd_value_is_found_anywhere(dtype, odd, size):
    for at in {0, size // 2, size - 1}:
        tensor = torch.full((size,), -6e4, dtype=dtype)
        assert is_finite(tensor)
        tensor[at] = float(odd)
        assert not is_finite(tensor)


def test_nothing_is_finite():
    assert is_finite(torch.empty(0, 3))
