"""Compressed adapters: ternary tensors, their bytes, the file that holds them."""
