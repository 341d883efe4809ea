"""Matrix products on a GPU: a kernel of our own where few rows meet small weights, the library's elsewhere."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from zipage.kernels.silu_multiply import silu_multiply
from zipage.kernels.small_product import add_small_product, gated_small_product, is_small_product, small_product


@dataclass(frozen=True)
class KernelProducts:
    """The products of `Operations`, one at a time.

    Attributes:
        counters: of `zipage.kernels.small_product.product_counters`.
    """

    counters: torch.Tensor

    def product(self, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """`Operations.product`."""
        if is_small_product(inputs, weight):
            return small_product(inputs, weight, self.counters)
        return F.linear(inputs, weight)

    def add_product(self, residual: torch.Tensor, inputs: torch.Tensor, weight: torch.Tensor) -> None:
        """`Operations.add_product`."""
        if is_small_product(inputs, weight):
            add_small_product(residual, inputs, weight, self.counters)
        else:
            residual.addmm_(inputs, weight.t())

    def gated_product(self, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """`Operations.gated_product`."""
        if is_small_product(inputs, weight):
            return gated_small_product(inputs, weight, self.counters)
        return silu_multiply(F.linear(inputs, weight))
