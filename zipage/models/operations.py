"""The operations of a decoder layer that a GPU has kernels for: one set for each kind of device."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Operations:
    """What layers call beside matrix products and attention.

    Attributes:
        rms_norm: `rms_norm(inputs [T, size], weight [size], eps) -> [T, size]`, computed in float32.
        silu_multiply: `silu_multiply(gate_up [T, 2 * I]) -> [T, I]`, gate first: `silu(gate) * up`.
    """

    rms_norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    silu_multiply: Callable[[torch.Tensor], torch.Tensor]


def operations_for(device: torch.device) -> Operations:
    """Kernels on a GPU, plain PyTorch elsewhere."""
    if device.type == "cuda":
        return kernel_operations()
    return Operations(_rms_norm, _silu_multiply)


def kernel_operations() -> Operations:
    """The Triton kernels, which also run on CPU tensors under Triton's interpreter."""
    # Triton takes long to import, and a CPU engine does without.
    from zipage.kernels.rms_norm import rms_norm
    from zipage.kernels.silu_multiply import silu_multiply

    return Operations(rms_norm, silu_multiply)


def _rms_norm(inputs: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(inputs, weight.shape, weight, eps)


def _silu_multiply(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
