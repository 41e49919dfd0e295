"""Kernels: each one a plain PyTorch reference, a Triton kernel, and one launcher that picks between them."""
