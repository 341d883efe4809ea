"""What a case of the kernel benchmark is, and the arithmetic that its builders share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Call = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """One case, ready to run.

    Attributes:
        calls: the case's work, each on memory of its own, together larger than the device's cache.
        check: does the work once and compares it with the reference: the largest error as a share of what is allowed.
        num_bytes: what one call has to move: its inputs read once and its outputs written once.
        num_operations: multiplications and additions of the matrix products that one call has to do.
        sdpa: the same work by PyTorch's scaled dot product attention on keys and values without pages; may be empty.
    """

    calls: Sequence[Call]
    check: Callable[[], float]
    num_bytes: int
    num_operations: int = 0
    sdpa: Sequence[Call] = ()


def num_copies(num_bytes: int, device: torch.device) -> int:
    """How often memory that one call moves has to exist for the cache to be of no use: three times the cache."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    return max(1, -(-3 * cache // num_bytes))


def scaled_error(actual: Tensor, expected: Tensor, allowed: float) -> float:
    """The largest distance of two vectors (last dimension) relative to the expected one's length, over `allowed`."""
    distance = (actual.double() - expected.double()).norm(dim=-1)
    return float((distance / expected.double().norm(dim=-1).clamp(min=1e-30)).max()) / allowed


def unequal(actual: Tensor, expected: Tensor) -> float:
    """0 for equal tensors, otherwise an infinite error."""
    return 0.0 if torch.equal(actual, expected) else float("inf")
