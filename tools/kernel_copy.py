"""What a device can copy: several ways to move the same bytes, since none is the fastest everywhere."""

# Kernels are written in Triton's language, which has no types for mypy.
# mypy: disable-error-code="no-untyped-def"

import statistics
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

COPIED_BYTES = 2 << 30
WARM_UPS, REPETITIONS = 3, 15
# Floats that one program copies, 16 bytes for each access of a thread.
_TILE = 4096


def copy_rates(device: torch.device) -> dict[str, float]:
    """Bytes read and written in a second by PyTorch's copy and element-wise kernels and by one of Triton.

    Each is the median of single calls between events, not in a graph, whose copies the driver may do in another way.
    """
    source = torch.randn(COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    halves = source.view(torch.bfloat16), target.view(torch.bfloat16)
    ways: dict[str, Callable[[], object]] = {
        "copy_": lambda: target.copy_(source),
        "clone": lambda: source.clone(),
        "neg float32": lambda: torch.neg(source, out=target),
        "neg bfloat16": lambda: torch.neg(halves[0], out=halves[1]),
        "triton": lambda: triton_copy(source, target),
    }
    return {name: 2 * COPIED_BYTES / _seconds(way) for name, way in ways.items()}


def triton_copy(source: Tensor, target: Tensor) -> None:
    """Copy a contiguous float32 tensor."""
    _copy_kernel[(triton.cdiv(source.numel(), _TILE),)](source, target, source.numel(), _TILE, num_warps=8)


def _seconds(way: Callable[[], object]) -> float:
    for _ in range(WARM_UPS):
        way()
    times = []
    for _ in range(REPETITIONS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        way()
        end.record()
        end.synchronize()
        times.append(1e-3 * start.elapsed_time(end))
    return statistics.median(times)


@triton.jit
def _copy_kernel(source, target, size, tile: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    tl.store(target + offsets, tl.load(source + offsets, mask=offsets < size), mask=offsets < size)
