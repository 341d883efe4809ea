"""What the wrappers of several kernels ask of their arguments."""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_scores(shape: Sequence[int], **scores: Tensor) -> None:
    """Raise a ValueError that names the tensor which is not float32, contiguous and of this shape."""
    for name, tensor in scores.items():
        if tensor.shape != tuple(shape) or tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be {list(shape)} float32, contiguous, not {list(tensor.shape)} {tensor.dtype}"
            )
