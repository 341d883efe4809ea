"""GPU kernels, one file per operation, and `reference`: the same operations in plain PyTorch."""
