"""The kernels that `turret_kernels.gpu.paged_attention` launches."""
