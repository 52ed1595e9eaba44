"""GGUF files are believed only where the file bears them out."""

import random
import struct

import gguf
import numpy as np
import pytest
import torch

from turret_adapters.errors import AdapterError, AdapterMalformed, AdapterUnsupported
from turret_adapters.files import AdapterFiles, FileLimits
from turret_adapters.gguf_file import GgufFile

NAME = "vector.gguf"


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def field(key, kind, value):
    return string(key) + struct.pack("<I", kind) + value


def tensor(name, sizes, kind=0, offset=0):
    return (
        string(name)
        + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        + struct.pack("<IQ", kind, offset)
    )


ARCHITECTURE = field("general.architecture", 8, string("controlvector"))


def gguf_bytes(fields=(ARCHITECTURE,), tensors=(), data=b"", version=3, counts=None, align=32):
    num_tensors, num_fields = counts or (len(tensors), len(fields))
    head = struct.pack("<4sIQQ", b"GGUF", version, num_tensors, num_fields)
    head += b"".join(fields) + b"".join(tensors)
    return head + b"\0" * (-len(head) % align) + data


def open_bytes(folder, data, **limits):
    (folder / NAME).write_bytes(data)
    with AdapterFiles.open(folder, limits=FileLimits(**limits)) as files:
        return files.tensors("*.gguf")


def test_reads_what_gguf_wrote(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / NAME, "controlvector")
    writer.add_string("a", "ü")
    writer.add_uint32("b", 7)
    writer.add_float64("c", 0.5)
    writer.add_bool("d", True)
    writer.add_array("e", ["x", "yy"])
    writer.add_array("f", [1, 2, 3])
    tensors = {
        "direction.1": np.arange(5, dtype=np.float32),
        "direction.2": np.arange(5, dtype=np.float16),
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    }
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with AdapterFiles.open(tmp_path) as files:
        file = files.tensors("*.gguf")
        assert isinstance(file, GgufFile)
        assert file.fields == {
            "general.architecture": "controlvector",
            **{"a": "ü", "b": 7, "c": 0.5, "d": True, "e": 2, "f": 3},
        }
        for name, values in tensors.items():
            assert file.infos[name].shape == values.shape
            assert torch.equal(file.read(name), torch.from_numpy(values))
            assert b"".join(map(bytes, file.chunks(name))) == values.tobytes()


def test_another_alignment(tmp_path):
    fields = [field("general.alignment", 4, struct.pack("<I", 8))]
    tensors = [tensor("a", [3]), tensor("b", [2], offset=16)]
    data = struct.pack("<3f", 1, 2, 3) + b"\0" * 4 + struct.pack("<2f", 4, 5)
    (tmp_path / NAME).write_bytes(gguf_bytes(fields, tensors, data, align=8))
    with AdapterFiles.open(tmp_path) as files:
        file = files.tensors("*.gguf")
        assert file.read("a").tolist() == [1, 2, 3]
        assert file.read("b").tolist() == [4, 5]


FOUR = struct.pack("<4f", 1, 2, 3, 4)
HUGE = struct.pack("<Q", 2**64 - 1)
MALFORMED = {
    "empty": b"",
    "short": b"GGUF",
    "magic": b"GGML" + gguf_bytes()[4:],
    "version": gguf_bytes(version=1),
    "big endian": gguf_bytes(version=3 << 24),
    "more tensors than allowed": gguf_bytes(counts=(2**40, 1)),
    "more tensors than there are": gguf_bytes(tensors=[tensor("a", [4])], data=FOUR, counts=(2, 1)),
    "more fields than there are": gguf_bytes(counts=(0, 2**63)),
    "a key of any length": gguf_bytes([HUGE + b"x"]),
    "a string of any length": gguf_bytes([field("a", 8, HUGE)]),
    "an array of any length": gguf_bytes([field("a", 9, struct.pack("<I", 4) + HUGE)]),
    "strings without end": gguf_bytes([field("a", 9, struct.pack("<I", 8) + HUGE)]),
    "arrays of arrays": gguf_bytes([field("a", 9, struct.pack("<IQ", 9, 1))]),
    "an unknown type": gguf_bytes([field("a", 13, b"\0" * 8)]),
    "a key twice": gguf_bytes([ARCHITECTURE, ARCHITECTURE]),
    "no UTF-8": gguf_bytes([field(b"\xff", 0, b"\0")]),
    "alignment 0": gguf_bytes([field("general.alignment", 4, struct.pack("<I", 0))]),
    "alignment 3": gguf_bytes([field("general.alignment", 4, struct.pack("<I", 3))]),
    "huge alignment": gguf_bytes([field("general.alignment", 10, struct.pack("<Q", 2**63))]),
    "alignment as text": gguf_bytes([field("general.alignment", 8, string("32"))]),
    "too many dimensions": gguf_bytes(tensors=[tensor("a", [1] * 5)], data=FOUR),
    "dimensions without end": gguf_bytes(tensors=[string("a") + b"\xff" * 4]),
    "a huge tensor": gguf_bytes(tensors=[tensor("a", [2**63, 2**63])], data=FOUR),
    "a tensor twice": gguf_bytes(
        tensors=[tensor("a", [4]), tensor("a", [4], offset=32)], data=FOUR + b"\0" * 16 + FOUR
    ),
    "overlap": gguf_bytes(tensors=[tensor("a", [4]), tensor("b", [4])], data=FOUR),
    "a gap": gguf_bytes(tensors=[tensor("a", [4], offset=32)], data=b"\0" * 32 + FOUR),
    "offset beyond everything": gguf_bytes(
        tensors=[tensor("a", [4], offset=2**64 - 32)], data=FOUR
    ),
    "truncated": gguf_bytes(tensors=[tensor("a", [4])], data=FOUR[:-1]),
    "more data than tensors": gguf_bytes(tensors=[tensor("a", [4])], data=FOUR + b"\0" * 32),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(tmp_path, case):
    with pytest.raises(AdapterMalformed):
        open_bytes(tmp_path, MALFORMED[case])


def test_quantised_tensors(tmp_path):
    with pytest.raises(AdapterUnsupported, match="type 8"):
        open_bytes(tmp_path, gguf_bytes(tensors=[tensor("a", [32], kind=8)], data=b"\0" * 34))


def test_a_long_header(tmp_path):
    data = gguf_bytes([field(f"k{i}", 10, HUGE) for i in range(100)])
    open_bytes(tmp_path, data)
    with pytest.raises(AdapterMalformed, match="longer than headers may be"):
        open_bytes(tmp_path, data, max_header_bytes=1000)


def test_a_huge_file(tmp_path):
    with pytest.raises(AdapterMalformed, match="at most 64 are read"):
        open_bytes(tmp_path, gguf_bytes(), max_file_bytes=64)


def test_several_files(tmp_path):
    (tmp_path / "other.gguf").write_bytes(gguf_bytes())
    with pytest.raises(AdapterUnsupported, match=r"2 files \*.gguf: 'other.gguf', 'vector.gguf'"):
        open_bytes(tmp_path, gguf_bytes())


def test_a_link_that_leaves_the_roots(tmp_path):
    folder, outside = tmp_path / "adapter", tmp_path / "outside.gguf"
    folder.mkdir()
    outside.write_bytes(gguf_bytes())
    (folder / NAME).symlink_to(outside)
    with AdapterFiles.open(folder, [folder]) as files, pytest.raises(AdapterError, match="outside"):
        files.tensors("*.gguf")


def test_random_damage_is_an_adapter_error_or_sound(tmp_path):
    rng = random.Random(0)
    tensors = [tensor("direction.1", [4]), tensor("direction.2", [4], offset=32)]
    whole = gguf_bytes(
        [ARCHITECTURE, field("b", 9, struct.pack("<IQ", 8, 1) + string("x"))], tensors
    )
    whole += FOUR + b"\0" * 16 + FOUR
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 5])):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(4):
                case 0 if at < len(data):
                    data[at] ^= 1 << rng.randrange(8)
                case 1:
                    del data[at:]
                    data += b"\0"
                case 2:
                    data[at : at + 8] = rng.choice([b"\xff" * 8, b"\0" * 8])
                case _:
                    data[at:at] = rng.randbytes(rng.randrange(1, 9))
        (tmp_path / NAME).write_bytes(bytes(data))
        try:
            with AdapterFiles.open(tmp_path) as files:
                file = files.tensors("*.gguf")
                for name, info in file.infos.items():
                    assert file.read(name).nbytes == info.num_bytes <= len(data)
        except AdapterError:
            pass
