"""Confinement to roots, strict JSON, and no pickle."""

import json
import os

import pytest

from turret_adapters.errors import (
    AdapterForbidden,
    AdapterMalformed,
    AdapterNotFound,
    AdapterUnsupported,
)
from turret_adapters.files import AdapterFiles, FileLimits

CONFIG = "adapter_config.json"


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "root" / "adapter"
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text('{"r": 8}')
    return folder


def read(path, roots=None, name=CONFIG, **limits):
    with AdapterFiles.open(path, roots, FileLimits(**limits)) as files:
        return files.json(name)


def test_inside_a_root(adapter):
    assert read(adapter, [adapter.parent.parent / "other", adapter.parent]) == {"r": 8}
    assert read(adapter, [adapter]) == {"r": 8}


@pytest.mark.parametrize("path", ["../adapter", "../root2/adapter", "/etc", "/", "..", "~root"])
def test_outside_the_roots(adapter, path, monkeypatch):
    other = adapter.parent.parent / "root2" / "adapter"
    other.mkdir(parents=True)
    (adapter.parent.parent / "adapter").mkdir()
    monkeypatch.chdir(adapter.parent)
    with pytest.raises((AdapterForbidden, AdapterNotFound)):
        read(path, [adapter.parent])


def test_what_is_outside_is_not_told(adapter):
    roots = [adapter.parent]
    messages = set()
    for path in ("/etc/passwd", "/etc/there-is-no-such-thing"):
        with pytest.raises(AdapterForbidden) as caught:
            read(path, roots)
        messages.add(caught.value.why)
    assert len(messages) == 1


def test_no_roots_allow_nothing(adapter):
    with pytest.raises(AdapterForbidden):
        read(adapter, [])


def test_a_link_out_of_the_root_is_followed_and_refused(adapter, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (adapter.parent / "link").symlink_to(outside)
    with pytest.raises(AdapterForbidden):
        read(adapter.parent / "link", [adapter.parent])


def test_a_file_that_links_out_of_the_root_is_refused(adapter, tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text('{"key": 1}')
    (adapter / CONFIG).unlink()
    (adapter / CONFIG).symlink_to(secret)
    with pytest.raises(AdapterForbidden):
        read(adapter, [adapter.parent])
    assert read(adapter) == {"key": 1}


def test_links_inside_the_root_are_fine(adapter):
    """The Hugging Face cache links every file of a snapshot to a blob beside it."""
    blob = adapter.parent / "blob"
    (adapter / CONFIG).rename(blob)
    (adapter / CONFIG).symlink_to(blob)
    assert read(adapter, [adapter.parent]) == {"r": 8}
    with pytest.raises(AdapterForbidden):
        read(adapter, [adapter])


@pytest.mark.parametrize("path", ["no-such", "bad\0name", "x" * 5000, "a/" * 3000])
def test_paths_that_lead_nowhere(tmp_path, path):
    with pytest.raises(AdapterNotFound):
        read(tmp_path / path if "\0" not in path else path)


def test_a_loop_of_links(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(AdapterNotFound):
        read(tmp_path / "a")


def test_a_file_is_no_folder(adapter):
    with pytest.raises(AdapterNotFound, match="a file, not a folder"):
        read(adapter / CONFIG)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_only_regular_files_are_read(adapter, make):
    (adapter / CONFIG).unlink()
    make(adapter / CONFIG)
    with pytest.raises((AdapterMalformed, AdapterNotFound)):
        read(adapter)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"3",
        b"null",
        b'{"r": 8',
        b'{"r": 8} x',
        b'{"r": NaN}',
        b'{"r": Infinity}',
        b'{"r": 1, "r": 2}',
        b'{"a": {"b": 1, "b": 2}}',
        b'\xef\xbb\xbf{"r": 8}',
        b'{"r": "\xff"}',
        rb'{"r": "\udc80"}',
        rb'{"\ud83d": 1}',
        b'{"r": ' + b"1" * 5000 + b"}",
        b'{"r": ' * 20 + b"1" + b"}" * 20,
        b"[" * 100_000,
        json.dumps({"r": 8}).encode("utf-16"),
    ],
    ids=lambda text: repr(text)[:30],
)
def test_json_that_is_refused(adapter, text):
    (adapter / CONFIG).write_bytes(text)
    with pytest.raises(AdapterMalformed):
        read(adapter)


def test_json_that_is_read(adapter):
    text = r'{"a": "\ud83d\ude00", "b": {"c": [1, 2.5, null, true]}, "d": 1e999}'
    (adapter / CONFIG).write_text(text)
    assert read(adapter)["a"] == "😀"


def test_json_size(adapter):
    with pytest.raises(AdapterMalformed, match="at most 4"):
        read(adapter, max_json_bytes=4)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth"])
def test_pickles_are_refused_with_the_way_out(adapter, suffix):
    (adapter / f"adapter_model{suffix}").write_bytes(b"\x80\x04cos\nsystem\n")
    with (
        AdapterFiles.open(adapter) as files,
        pytest.raises(AdapterUnsupported, match="pickle") as caught,
    ):
        files.tensors("adapter_model.safetensors")
    assert "weights_only=True" in caught.value.fix


def test_missing_weights(adapter):
    with AdapterFiles.open(adapter) as files, pytest.raises(AdapterNotFound, match=CONFIG):
        files.tensors("adapter_model.safetensors")


def test_closing_leaves_no_descriptor(folder):
    before = len(os.listdir("/proc/self/fd"))
    with AdapterFiles.open(folder) as files:
        files.json(CONFIG)
        files.tensors("adapter_model.safetensors")
        assert len(os.listdir("/proc/self/fd")) == before + 2
    assert len(os.listdir("/proc/self/fd")) == before
