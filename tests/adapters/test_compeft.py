"""Compressing, the container, and containers that were tampered with."""

import json
import math
import zlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from turret_adapters.components import LowRank, Scale
from turret_adapters.compress.compeft import compress, drift, full_size_alpha, sparsify
from turret_adapters.compress.container import (
    CONTAINER_NAME,
    DecodedFiles,
    Ternary,
    write_container,
)
from turret_adapters.errors import AdapterError, AdapterMalformed, AdapterUnsupported
from turret_adapters.files import AdapterFiles, FileLimits
from turret_adapters.inspect import describe
from turret_adapters.loading import read_adapter
from turret_adapters.spec import Module, Program, Site

TABLE = "compeft.table"


@pytest.fixture
def small(folder, tmp_path):
    """A compressed adapter."""
    target = tmp_path / "small"
    compress(folder, target, density=0.3)
    return target


def load(path, shape, **limits):
    return read_adapter(path, shape, torch.float32, limits=FileLimits(**limits))


def edit(path, change_metadata=None, change_tensors=None):
    file = path / CONTAINER_NAME
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    if change_metadata:
        metadata = change_metadata(metadata)
    if change_tensors:
        tensors = change_tensors(tensors)
    save_file(tensors, file, metadata)


def edit_entry(path, position, value):
    """Change one value of the first tensor's entry."""

    def change(tensors):
        entries = table_of(tensors)
        key = next(iter(entries))
        old = entries[key][position]
        entries[key][position] = value(old) if callable(value) else value
        return tensors | {TABLE: deflated(json.dumps(entries).encode())}

    edit(path, change_tensors=change)


def table_of(tensors):
    return json.loads(zlib.decompress(tensors[TABLE].numpy().tobytes()))


def deflated(text):
    return torch.frombuffer(bytearray(zlib.compress(text)), dtype=torch.uint8)


def test_it_loads_as_the_adapter_it_was(small, folder, shape):
    digest, program = load(small, shape)
    _, source = load(folder, shape)
    assert program.kind == "compeft"
    assert program.notes[0] == "lora, compressed"
    assert program.targets == source.targets
    assert program.base_model == source.base_model
    for component, other in zip(program.components, source.components, strict=True):
        assert component.site == other.site
        values = component.a.unique()
        assert len(values) == 3
        assert values[1] == 0
        assert values[0] == -values[2]
    assert load(small, shape)[0] == digest


def test_the_error_is_what_it_says(small, folder, shape):
    result = compress(folder, small, density=0.4)
    _, program = load(small, shape)
    _, source = load(folder, shape)
    for component, other in zip(program.components, source.components, strict=True):
        want, got = other.b.T @ other.a, component.b.T @ component.a
        error = (want - got).norm() / want.norm()
        assert result.drift[component.site] == pytest.approx(error.item(), rel=1e-4)
    assert result.num_bytes == (small / CONTAINER_NAME).stat().st_size
    assert 0 < max(result.drift.values()) < 1


def test_the_automatic_alpha_keeps_the_size_of_the_change(folder, tmp_path, shape):
    _, source = load(folder, shape)
    result = compress(folder, tmp_path / "x", density=0.2)
    _, program = load(tmp_path / "x", shape)
    inner = norm = 0.0
    for c, s in zip(program.components, source.components, strict=True):
        want, got = (s.b.T @ s.a).double(), (c.b.T @ c.a).double()
        inner += float((want * got).sum())
        norm += float((want * want).sum())
    assert inner == pytest.approx(norm, rel=1e-5)
    assert 1 < result.alpha < 5


def test_the_scale_of_ia3_counts_once():
    site = Site(0, Module.K)
    want = Program("ia3", (Scale(site, torch.tensor([3.0, 1.0, 1.0])),))
    got = Program("ia3", (Scale(site, torch.tensor([2.0, 1.0, 1.0])),))
    assert full_size_alpha(want, got) == 2
    assert drift(want, got) == {site: 0.5}
    squared = Program("lora", (LowRank(site, torch.ones(1, 2), torch.ones(1, 2)),))
    larger = Program("lora", (LowRank(site, torch.ones(1, 2), 4 * torch.ones(1, 2)),))
    assert full_size_alpha(larger, squared) == 2


def test_values_of_ia3_rest_at_one(tmp_path):
    signs = torch.tensor([[1], [0], [-1]], dtype=torch.int8)
    write_container(
        tmp_path / CONTAINER_NAME,
        {"k.ia3_l": Ternary(signs, 0.25)},
        rest=1,
        config={"peft_type": "IA3"},
    )
    with AdapterFiles.open(tmp_path) as files:
        decoded = DecodedFiles(files)
        assert decoded.json("adapter_config.json") == {"peft_type": "IA3"}
        tensors = decoded.tensors("adapter_model.safetensors")
        assert tensors.read("k.ia3_l").tolist() == [[1.25], [1.0], [0.75]]


def test_the_paper_counts_one_more_than_the_fraction():
    """It keeps what is not below the (d - floor(d K))-th smallest magnitude."""
    torch.manual_seed(0)
    values = {"a": torch.randn(600), "b": torch.randn(400)}
    kept = sparsify(values, 0.05, per_tensor=False)
    assert sum(t.values.count_nonzero().item() for t in kept.values()) == 51
    both = torch.cat(list(values.values()))
    assert kept["a"].scale == kept["b"].scale == pytest.approx(both.std().item())


def test_per_tensor_small_tensors_keep_their_share():
    values = {"a": torch.randn(1000), "b": torch.randn(1000) * 1e-3}
    together = sparsify(values, 0.1, per_tensor=False)
    apart = sparsify(values, 0.1, per_tensor=True)
    assert together["b"].values.count_nonzero() == 0
    assert apart["b"].values.count_nonzero() == 101


def test_an_adapter_of_which_nothing_is_left_is_refused(lab, folder, tmp_path):
    lab.edit_tensors(
        folder, lambda t: {k: v * (1e-6 if "lora_B" in k else 1) for k, v in t.items()}
    )
    with pytest.raises(AdapterUnsupported, match="nothing is left"):
        compress(folder, tmp_path / "none", per_tensor=False)
    assert not (tmp_path / "none" / CONTAINER_NAME).exists()
    compress(folder, tmp_path / "some")


@pytest.mark.parametrize("density", [0, -1, 1.5, math.nan])
def test_densities_are_fractions(folder, tmp_path, density):
    with pytest.raises(ValueError, match="density"):
        compress(folder, tmp_path / "x", density=density)


def test_other_kinds_are_not_compressed(lab, folder, tmp_path, small):
    with pytest.raises(AdapterUnsupported, match="peft_type is None"):
        compress(small, tmp_path / "x")  # compressed already
    lab.edit_config(folder, peft_type="LOHA")
    with pytest.raises(AdapterUnsupported, match="peft_type is 'LOHA'"):
        compress(folder, tmp_path / "x")


def test_a_folder_with_an_adapter_is_not_written_into(folder):
    with pytest.raises(AdapterUnsupported, match="holds an adapter already"):
        compress(folder, folder)


def test_inspect_shows_it(small):
    report = describe(small)
    assert report["refusal"] is None
    assert report["kind"] == "compeft"


# ------------------------------------------------------------------ containers nobody wrote

KEYS = ("format", "version", "rest", "config")


@pytest.mark.parametrize("key", KEYS)
def test_no_metadata_may_be_missing(small, shape, key):
    edit(small, lambda m: {k: v for k, v in m.items() if k != key})
    with pytest.raises(AdapterError):
        load(small, shape)


@pytest.mark.parametrize(("version", "fix"), [("1", "Compress"), ("3", "Update the server")])
def test_another_version_is_refused(small, shape, version, fix):
    edit(small, lambda m: m | {"version": version})
    with pytest.raises(AdapterUnsupported, match=f"version '{version}', and .* version '2'") as e:
        load(small, shape)
    assert e.value.fix.startswith(fix)


SHAPE, CODER, NNZ, BITS, BYTES, SCALE, SHA = range(7)


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (SHAPE, lambda s: s[::-1]),
        (SHAPE, lambda s: [s[0], s[1] * 2]),
        (SHAPE, lambda s: [1 << 30, 1 << 30]),
        (SHAPE, [-1, 4]),
        (SHAPE, []),
        (SHAPE, 7),
        (SHAPE, [True, 4]),
        (CODER, "zip"),
        (CODER, None),
        (NNZ, lambda n: n + 1),
        (NNZ, lambda n: n - 1),
        (NNZ, 1.0),
        (NNZ, 1 << 50),
        (BITS, lambda b: b + 1),
        (BITS, -1),
        (BYTES, lambda b: b + 1),
        (BYTES, lambda b: b - 1),
        (BYTES, 0),
        (SCALE, "inf"),
        (SCALE, "nan"),
        (SCALE, "x"),
        (SCALE, 1.0),
        (SCALE, "0x1p99999"),
        (SHA, "0" * 16),
        (SHA, None),
    ],
)
def test_no_entry_may_be_changed(small, shape, position, value):
    edit_entry(small, position, value)
    with pytest.raises(AdapterError):
        load(small, shape)


def test_another_scale_is_another_adapter(small, shape):
    digest, _ = load(small, shape)
    edit_entry(small, SCALE, lambda s: (float.fromhex(s) * 2).hex())
    assert load(small, shape)[0] != digest


@pytest.mark.parametrize("stream", ["compeft.places", "compeft.signs"])
def test_a_flipped_bit_is_found(small, shape, stream):
    def flip(tensors):
        tensors[stream][len(tensors[stream]) // 2] ^= 4
        return tensors

    edit(small, change_tensors=flip)
    with pytest.raises(AdapterMalformed):
        load(small, shape)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t | {"compeft.signs": t["compeft.signs"][:-1]},
        lambda t: t | {"compeft.signs": t["compeft.signs"].view(torch.int8)},
        lambda t: t | {"compeft.places": torch.cat([t["compeft.places"], t["compeft.places"][:1]])},
        lambda t: {k: v for k, v in t.items() if k != "compeft.places"},
        lambda t: {k: v for k, v in t.items() if k != TABLE},
        lambda t: t | {TABLE: t[TABLE][:-1]},
        lambda t: t | {TABLE: t[TABLE].flip(0)},
        lambda t: t | {TABLE: t[TABLE].view(torch.int8)},
        lambda t: t | {TABLE: torch.cat([t[TABLE], t[TABLE]])},
        lambda t: t | {TABLE: deflated(b"[" * 100_000)},
        lambda t: t | {TABLE: deflated(b"\xff{}")},
        lambda t: t | {"base_model.model.stranger.weight": torch.ones(2)},
    ],
)
def test_no_stream_may_be_changed(small, shape, change):
    edit(small, change_tensors=change)
    with pytest.raises(AdapterError):
        load(small, shape)


def test_the_table_inflates_to_a_bounded_size(small, shape):
    edit(small, change_tensors=lambda t: t | {TABLE: deflated(b" " * (9 << 20) + b"{}")})
    with pytest.raises(AdapterMalformed, match="inflates to over 8388608"):
        load(small, shape)


def test_a_tensor_may_not_be_stored_twice(small, shape):
    key = next(iter(table_of(load_file(small / CONTAINER_NAME))))
    edit(small, change_tensors=lambda t: t | {key: torch.ones(2)})
    with pytest.raises(AdapterMalformed, match="stored twice"):
        load(small, shape)


def test_the_unpacked_size_is_bounded_before_anything_is_unpacked(small, shape):
    with pytest.raises(AdapterMalformed, match="unpacks to"):
        load(small, shape, max_file_bytes=(small / CONTAINER_NAME).stat().st_size)


def test_a_folder_with_both_forms_is_refused(small, folder, shape):
    (small / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    with pytest.raises(AdapterUnsupported, match="several kinds"):
        load(small, shape)
