"""Numbers from Python lists to the device without waiting for it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(lists: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
    """Copy lists of integers to the device, all in one transfer that the host does not wait for.

    Returns:
        One int64 vector for each list.
    """
    host = torch.tensor(
        [number for numbers in lists for number in numbers], dtype=torch.int64, pin_memory=_is_gpu(device)
    )
    # Pinned memory is not used again before the copy has happened: PyTorch's allocator sees to that.
    return list(host.to(device, non_blocking=True).split([len(numbers) for numbers in lists]))


def upload_floats(lists: Sequence[Sequence[float]], device: torch.device) -> list[Tensor]:
    """`upload` for float64."""
    host = torch.tensor(
        [number for numbers in lists for number in numbers], dtype=torch.float64, pin_memory=_is_gpu(device)
    )
    return list(host.to(device, non_blocking=True).split([len(numbers) for numbers in lists]))


def download(tensor: Tensor) -> Tensor:
    """Begin a copy to pinned host memory; it is there once the device has got so far."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=_is_gpu(tensor.device))
    return host.copy_(tensor, non_blocking=True)


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"
