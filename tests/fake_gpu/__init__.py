"""A GPU made of the host's memory, for tests of the CUDA path on machines without one.

Needs Triton's interpreter, `TRITON_INTERPRET=1`, which computes what kernels launch.

What a test on it proves: nothing mixes devices, no kernel is handed a tensor of the host, results
do not depend on memory that nobody wrote, what was recorded into a graph computes the same again
with other inputs; where the host waits for the device, and that it waits long enough: copies in
both directions take until an event says otherwise. What it cannot prove: that a kernel compiles or
has no race, that streams are ordered among each other, what a driver refuses while it captures
(beyond waits and copies of the host), how much memory is used, how long anything takes.
"""

from tests.fake_gpu.cuda import fake_gpu
from tests.fake_gpu.stream import Stream

__all__ = ["Stream", "fake_gpu"]
