"""A device is a meta tensor here: what would be sent can be seen, what arrives cannot."""

import numpy as np
import torch

from turret_server.engine.staging import Staging

ARRAYS = {
    "ids": ((5,), torch.int64),
    "start": ((3,), torch.int32),
    "table": ((4, 6), torch.int32),
}


def test_on_a_cpu_the_device_reads_the_host_s_arrays():
    staging = Staging(ARRAYS, torch.device("cpu"))
    staging.host["table"][2] = 7
    staging.send("table", 3)
    assert staging.device["table"][2].tolist() == [7] * 6
    for name, (shape, dtype) in ARRAYS.items():
        assert staging.device[name].shape == shape
        assert staging.device[name].dtype == dtype
        assert staging.device[name].data_ptr() == staging.host[name].ctypes.data


def test_arrays_do_not_overlap_and_are_aligned():
    host = Staging(ARRAYS, torch.device("cpu")).host
    for number, array in enumerate(host.values(), 1):
        array[:] = number
    assert all((array == n).all() for n, array in enumerate(host.values(), 1))
    first = min(array.ctypes.data for array in host.values())
    assert all((array.ctypes.data - first) % 64 == 0 for array in host.values())


def test_what_is_sent(monkeypatch):
    staging = Staging(ARRAYS, torch.device("meta"))
    sent = []
    monkeypatch.setattr(
        torch.Tensor, "copy_", lambda to, what, non_blocking: sent.append(what.clone())
    )
    staging.host["ids"][:] = 1
    staging.host["start"][:] = 2
    staging.host["table"][:] = np.arange(24).reshape(4, 6)
    staging.send("start")
    staging.send("table", 2)
    staging.send("table")
    assert [x.numel() for x in sent] == [64 + 12, 128 + 48, 128 + 96]
    assert sent[1][:40].view(torch.int64).tolist() == [1] * 5
    assert sent[1][128:].view(torch.int32).tolist() == list(range(12))


def test_the_host_s_arrays_are_filled_again_when_they_have_arrived(monkeypatch):
    """Of a GPU: its events are named here, and what becomes of them."""
    did = []

    class Event:
        def record(self):
            did.append("record")

        def synchronize(self):
            did.append("wait")

    zeros, device = torch.zeros, torch.device("cuda")
    monkeypatch.setattr(torch, "zeros", lambda *size, dtype, pin_memory: zeros(*size, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, device: x.clone())
    staging = Staging(ARRAYS, device)
    staging.wait()
    staging.send("start")
    staging.wait()
    assert did == ["wait", "record", "wait"]
