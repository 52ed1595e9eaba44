"""That the fake GPU refuses and shows what it is there for, and leaves nothing behind."""

from __future__ import annotations

import threading

import pytest
import torch
from tests.fake_gpu import fake_gpu
from tests.fake_gpu.cuda import CUDA

from turret_kernels import gpu
from turret_kernels.gpu.graph import Recorder

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not gpu.INTERPRETED, reason="needs TRITON_INTERPRET=1"),
]
GPU = torch.device("cuda", 0)


@pytest.fixture
def device():
    with fake_gpu() as stream:
        yield stream


@pytest.mark.usefixtures("device")
def test_devices_do_not_mix():
    x = torch.zeros(3, device=GPU)
    assert x.is_cuda
    assert x.device == torch.tensor([1], device="cuda").device == GPU
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        torch.cat([torch.ones(3), x])
    with pytest.raises(RuntimeError, match="numpy"):
        x.numpy()


@pytest.mark.usefixtures("device")
def test_kernels_take_no_tensors_of_the_host():
    from turret_kernels.gpu.norms import rms_norm

    x = torch.ones(2, 8, device=GPU)
    assert rms_norm(x, torch.ones(8, device=GPU), 3.0).tolist() == [[0.5] * 8] * 2
    with pytest.raises(RuntimeError, match="a tensor of the host"):
        rms_norm(x, torch.ones(8), 3.0)


@pytest.mark.usefixtures("device")
def test_nobody_has_written_new_memory():
    assert torch.empty(3, device=GPU).isnan().all().item()


@pytest.mark.parametrize(
    ("wait", "name"),
    [
        (lambda x: x[0].item(), "aten._local_scalar_dense"),
        (lambda x: bool(x.any()), "aten._local_scalar_dense"),
        (lambda x: x.tolist(), "from the device"),
        (lambda x: x.to("cpu"), "from the device"),
        (lambda x: torch.empty(4).copy_(x, non_blocking=True), "from the device"),
        (lambda x: x.copy_(torch.ones(4), non_blocking=True), "to the device"),
        (lambda x: x.copy_(torch.ones(4).pin_memory()), "to the device"),
        (lambda x: torch.tensor(1.0, device=x.device), "to the device"),
        (lambda x: torch.ones(4).to(x), "to the device"),
        (lambda x: x[x > 0], "aten.index"),
        (lambda x: x[torch.tensor([1])], "aten.index"),
        (lambda x: x.nonzero(), "aten.nonzero"),
    ],
)
@pytest.mark.parametrize("inference", [True, False])
def test_waits_are_logged(device, inference, wait, name):
    with torch.inference_mode(inference):
        wait(torch.ones(4, device=GPU))
    (entry,) = device.log
    assert name in entry
    assert "test_fake_gpu.py" in entry


def test_copies_end_when_they_are_waited_for(device):
    source = torch.arange(3).pin_memory()
    x = source.to(GPU, non_blocking=True)
    copy = torch.empty(3, dtype=torch.int64, pin_memory=True).copy_(x, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    late = torch.zeros(3, dtype=torch.int64, pin_memory=True).copy_(x, non_blocking=True)
    assert copy.tolist() != [0, 1, 2]
    event.synchronize()
    assert copy.tolist() == [0, 1, 2]
    assert late.tolist() != [0, 1, 2]
    torch.cuda.synchronize()
    assert late.tolist() == [0, 1, 2]
    assert device.log == ["to device", "to host", "to host", "event"]


@pytest.mark.usefixtures("device")
def test_what_is_sent_must_not_change_before_it_is_there():
    source = torch.zeros(3, pin_memory=True)
    source.to(GPU, non_blocking=True)
    source[0] = 1
    with pytest.raises(RuntimeError, match="filled again"):
        torch.cuda.synchronize()


@pytest.mark.usefixtures("device")
def test_a_graph_computes_with_what_is_there_when_it_is_replayed():
    x, y = torch.zeros(2, 3, device=GPU).unbind()
    x.fill_(2)

    def run():
        z = (x[1:] * 3).repeat(2)
        y[:2] += 1
        return torch.cat([z, y])

    graph, out = Recorder().record(lambda: y.zero_(), run)
    assert out.tolist() == [6.0] * 4 + [1.0, 1.0, 0.0]
    x.fill_(5)
    graph.replay()
    assert out.tolist() == [15.0] * 4 + [2.0, 2.0, 0.0]


@pytest.mark.parametrize(
    "what", [lambda x: x.sum().item(), lambda x: gpu.to_device(torch.ones(3), x.device)]
)
@pytest.mark.usefixtures("device")
def test_the_host_takes_no_part_in_a_graph(what):
    x = torch.zeros(3, device=GPU)
    with (
        pytest.raises(RuntimeError, match="while a graph is recorded"),
        torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"),
    ):
        what(x)


def test_other_threads_have_streams_of_their_own(device):
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.ones(2, device=GPU).tolist()))
    thread.start()
    thread.join()
    assert found == [[1.0, 1.0]]
    assert not device.log


def test_nothing_is_left():
    from triton.runtime.interpreter import GridExecutor

    places = [(torch.cuda, name) for name in CUDA]
    places += [(threading.Thread, "run"), (GridExecutor, "__call__"), (gpu, "INTERPRETED")]
    before = [getattr(*place) for place in places]
    with fake_gpu():
        x = torch.zeros(3, device=GPU)
        assert all(getattr(*p) != value for p, value in zip(places, before, strict=True))
    assert [getattr(*place) for place in places] == before
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="has not been given"):
        x + 1
