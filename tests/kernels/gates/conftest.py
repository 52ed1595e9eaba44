from importlib.util import find_spec

from turret_kernels import gpu

# A process either compiles kernels or interprets them; and there is no triton for macOS.
collect_ignore = ["test_gates.py"] if gpu.INTERPRETED or find_spec("triton") is None else []
