"""The parts of a decoder layer, for a flat batch of tokens [T, ...].

The residual stream is updated in place, which saves one operation and one tensor for each addition. Parameters are
allocated but not initialised: `loading` fills them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from zipage.models.config import ModelConfig
from zipage.models.operations import Operations
from zipage.models.rope import rotate

AttentionFunction = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""`attention(layer, query, key, value) -> output`.

query and output are [T, Hq, d], key and value [T, Hkv, d], in the model's dtype. Query and key are RoPE'd (and
normalised, where the model does that). All three are views of larger tensors: the last dimension is contiguous, the
token stride is not `H * d`. The callable scales by `1 / sqrt(d)`.
"""

ProjectedAttention = Callable[[int, torch.Tensor, "HeadNorm | None"], torch.Tensor]
"""`attention(layer, qkv, head_norm) -> output`.

qkv is [T, (Hq + 2 * Hkv) * d], what the projections of a layer give; the callable normalises the heads of query and key
where the model does that, applies RoPE and attends. output is [T, Hq * d].
"""


class Projection(torch.nn.Module):
    """A matrix product, with a bias where the model has one: weight [out, in], bias [out]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        operations: Operations,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.operations = operations
        self.weight = empty_parameter((out_features, in_features), dtype, device)
        self.bias = empty_parameter((out_features,), dtype, device) if bias else None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[T, in] -> [T, out]."""
        if self.bias is not None:
            return F.linear(inputs, self.weight, self.bias)
        return self.operations.product(inputs, self.weight)

    def gated(self, inputs: torch.Tensor) -> torch.Tensor:
        """[T, in] -> [T, out / 2]: `silu(gate) * up` of the product, whose first half is gate."""
        if self.bias is not None:
            return self.operations.silu_multiply(self(inputs))
        return self.operations.gated_product(inputs, self.weight)

    def add_to(self, residual: torch.Tensor, inputs: torch.Tensor) -> None:
        """Add the product of `inputs` [T, in] to `residual` [T, out] in place."""
        self.operations.add_product(residual, inputs, self.weight)
        if self.bias is not None:
            residual.add_(self.bias)


class RMSNorm(torch.nn.Module):
    """Root-mean-square normalisation over the last dimension, computed in float32: weight [size]."""

    def __init__(self, size: int, eps: float, operations: Operations, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.eps = eps
        self.operations = operations
        self.weight = empty_parameter((size,), dtype, device)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[T, size] -> [T, size]."""
        return self.operations.rms_norm(inputs, self.weight, self.eps)


class HeadNorm(torch.nn.Module):
    """RMS normalisation of every query and key head by itself, in one operation for both.

    The weight is [Hq + Hkv, d]: the query weight Hq times, then the key weight Hkv times.
    """

    def __init__(self, num_heads: int, head_dim: int, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.eps = eps
        self.weight = empty_parameter((num_heads, head_dim), dtype, device)

    def forward(self, heads: torch.Tensor) -> torch.Tensor:
        """[T, Hq + Hkv, d] -> [T, Hq + Hkv, d]."""
        return F.rms_norm(heads, heads.shape[-1:], None, self.eps).mul_(self.weight)


@dataclass(frozen=True)
class RotaryAttention:
    """A `ProjectedAttention` in plain PyTorch around an `AttentionFunction`; cosines and sines are as in `rotate`."""

    cosines: torch.Tensor
    sines: torch.Tensor
    num_query_heads: int
    num_kv_heads: int
    attention: AttentionFunction

    def __call__(self, layer: int, qkv: torch.Tensor, head_norm: HeadNorm | None) -> torch.Tensor:
        num_heads = self.num_query_heads + 2 * self.num_kv_heads
        heads = qkv.unflatten(-1, (num_heads, -1))
        rotated, value = heads.split((self.num_query_heads + self.num_kv_heads, self.num_kv_heads), dim=1)
        if head_norm is not None:
            rotated = head_norm(rotated)
        rotated = rotate(rotated, self.cosines, self.sines)
        query, key = rotated.split((self.num_query_heads, self.num_kv_heads), dim=1)
        return self.attention(layer, query, key, value).flatten(1)


class Attention(torch.nn.Module):
    """Self-attention around a `ProjectedAttention`. Rows of `qkv` are the query, key and value projections in turn."""

    def __init__(self, config: ModelConfig, operations: Operations, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        num_rotated = config.num_query_heads + config.num_kv_heads
        self.qkv = Projection(
            config.hidden_size,
            (num_rotated + config.num_kv_heads) * config.head_dim,
            config.attention_bias,
            operations,
            dtype,
            device,
        )
        self.head_norm = (
            HeadNorm(num_rotated, config.head_dim, config.rms_norm_eps, dtype, device) if config.qk_norm else None
        )
        self.output = Projection(
            config.num_query_heads * config.head_dim,
            config.hidden_size,
            config.attention_output_bias,
            operations,
            dtype,
            device,
        )

    def forward(self, layer: int, residual: torch.Tensor, inputs: torch.Tensor, attention: ProjectedAttention) -> None:
        """Add attention's output for `inputs` [T, hidden] to `residual` [T, hidden]."""
        self.output.add_to(residual, attention(layer, self.qkv(inputs), self.head_norm))


class FeedForward(torch.nn.Module):
    """The gated feed-forward part: `down(silu(gate(x)) * up(x))`. Rows of `gate_up` are gate, then up."""

    def __init__(self, config: ModelConfig, operations: Operations, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        hidden, intermediate, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_up = Projection(hidden, 2 * intermediate, bias, operations, dtype, device)
        self.down = Projection(intermediate, hidden, bias, operations, dtype, device)

    def forward(self, residual: torch.Tensor, inputs: torch.Tensor) -> None:
        """Add the output for `inputs` [T, hidden] to `residual` [T, hidden]."""
        self.down.add_to(residual, self.gate_up.gated(inputs))


class DecoderLayer(torch.nn.Module):
    """Attention and feed-forward, each behind its norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, operations: Operations, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, operations, dtype, device)
        self.attention = Attention(config, operations, dtype, device)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, operations, dtype, device)
        self.feed_forward = FeedForward(config, operations, dtype, device)

    def forward(self, layer: int, residual: torch.Tensor, attention: ProjectedAttention) -> None:
        """Update `residual` [T, hidden] in place."""
        self.attention(layer, residual, self.attention_norm(residual), attention)
        self.feed_forward(residual, self.feed_forward_norm(residual))


def empty_parameter(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.nn.Parameter:
    """A parameter without gradient whose values are undefined."""
    return torch.nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)
