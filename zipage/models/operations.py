"""The operations of a decoder layer that a GPU has kernels for: one set for each kind of device."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Operations:
    """What layers call beside attention.

    Attributes:
        rms_norm: `rms_norm(inputs [T, size], weight [size], eps) -> [T, size]`, computed in float32.
        silu_multiply: `silu_multiply(gate_up [T, 2 * I]) -> [T, I]`, gate first: `silu(gate) * up`.
        product: `product(inputs [T, in], weight [out, in]) -> [T, out]`.
        add_product: `add_product(residual [T, out], inputs [T, in], weight [out, in])`, in place.
        gated_product: `silu_multiply(product(inputs [T, in], weight [2 * I, in])) -> [T, I]`.
    """

    rms_norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    silu_multiply: Callable[[torch.Tensor], torch.Tensor]
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    add_product: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
    gated_product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def operations_for(device: torch.device) -> Operations:
    """Kernels on a GPU, plain PyTorch elsewhere."""
    if device.type == "cuda":
        return kernel_operations(device)
    return Operations(_rms_norm, _silu_multiply, F.linear, _add_product, _gated_product)


def kernel_operations(device: torch.device) -> Operations:
    """The Triton kernels, which also run on CPU tensors under Triton's interpreter."""
    # Triton takes long to import, and a CPU engine does without.
    from zipage.kernels.rms_norm import rms_norm
    from zipage.kernels.silu_multiply import silu_multiply
    from zipage.kernels.small_product import product_counters
    from zipage.models.kernel_products import KernelProducts

    products = KernelProducts(product_counters(device))
    return Operations(rms_norm, silu_multiply, products.product, products.add_product, products.gated_product)


def _rms_norm(inputs: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(inputs, weight.shape, weight, eps)


def _silu_multiply(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def _add_product(residual: torch.Tensor, inputs: torch.Tensor, weight: torch.Tensor) -> None:
    residual.addmm_(inputs, weight.t())


def _gated_product(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return _silu_multiply(F.linear(inputs, weight))
