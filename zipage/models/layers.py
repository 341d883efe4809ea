"""The parts of a decoder layer, for a flat batch of tokens [T, ...].

The residual stream is updated in place, which saves one operation and one tensor for each addition. Parameters are
allocated but not initialised: `loading` fills them.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from zipage.models.config import ModelConfig
from zipage.models.rope import rotate

AttentionFunction = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""`attention(layer, query, key, value) -> output`.

query and output are [T, Hq, d], key and value [T, Hkv, d], in the model's dtype. Query and key are RoPE'd (and
normalised, where the model does that). All three are views of larger tensors: the last dimension is contiguous, the
token stride is not `H * d`. The callable scales by `1 / sqrt(d)`.
"""


class Projection(torch.nn.Module):
    """A matrix product, with a bias where the model has one: weight [out, in], bias [out]."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.weight = empty_parameter((out_features, in_features), dtype, device)
        self.bias = empty_parameter((out_features,), dtype, device) if bias else None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[T, in] -> [T, out]."""
        return F.linear(inputs, self.weight, self.bias)

    def add_to(self, residual: torch.Tensor, inputs: torch.Tensor) -> None:
        """Add the product of `inputs` [T, in] to `residual` [T, out] in place."""
        residual.addmm_(inputs, self.weight.t())
        if self.bias is not None:
            residual.add_(self.bias)


class RMSNorm(torch.nn.Module):
    """Root-mean-square normalisation over the last dimension, computed in float32: weight [size]."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.eps = eps
        self.weight = empty_parameter((size,), dtype, device)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[T, size] -> [T, size]."""
        return F.rms_norm(inputs, self.weight.shape, self.weight, self.eps)


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


class Attention(torch.nn.Module):
    """Self-attention around an `AttentionFunction`. Rows of `qkv` are the query, key and value projections in turn."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.num_query_heads = config.num_query_heads
        self.num_kv_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        num_rotated = config.num_query_heads + config.num_kv_heads
        self.qkv = Projection(
            config.hidden_size,
            (num_rotated + config.num_kv_heads) * config.head_dim,
            config.attention_bias,
            dtype,
            device,
        )
        self.head_norm = (
            HeadNorm(num_rotated, config.head_dim, config.rms_norm_eps, dtype, device) if config.qk_norm else None
        )
        self.output = Projection(
            config.num_query_heads * config.head_dim, config.hidden_size, config.attention_output_bias, dtype, device
        )

    def forward(
        self,
        layer: int,
        residual: torch.Tensor,
        inputs: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        attention: AttentionFunction,
    ) -> None:
        """Add attention's output for `inputs` [T, hidden] to `residual` [T, hidden]; the rest is as in `rotate`."""
        heads = self.qkv(inputs).unflatten(-1, (-1, self.head_dim))
        rotated, value = heads.split((self.num_query_heads + self.num_kv_heads, self.num_kv_heads), dim=1)
        if self.head_norm is not None:
            rotated = self.head_norm(rotated)
        rotated = rotate(rotated, cosines, sines)
        query, key = rotated.split((self.num_query_heads, self.num_kv_heads), dim=1)
        self.output.add_to(residual, attention(layer, query, key, value).flatten(1))


class FeedForward(torch.nn.Module):
    """The gated feed-forward part: `down(silu(gate(x)) * up(x))`. Rows of `gate_up` are gate, then up."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.gate_up = Projection(config.hidden_size, 2 * config.intermediate_size, config.mlp_bias, dtype, device)
        self.down = Projection(config.intermediate_size, config.hidden_size, config.mlp_bias, dtype, device)

    def forward(self, residual: torch.Tensor, inputs: torch.Tensor) -> None:
        """Add the output for `inputs` [T, hidden] to `residual` [T, hidden]."""
        gate, up = self.gate_up(inputs).chunk(2, dim=-1)
        self.down.add_to(residual, F.silu(gate).mul_(up))


class DecoderLayer(torch.nn.Module):
    """Attention and feed-forward, each behind its norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
        self.attention = Attention(config, dtype, device)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
        self.feed_forward = FeedForward(config, dtype, device)

    def forward(
        self,
        layer: int,
        residual: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        attention: AttentionFunction,
    ) -> None:
        """Update `residual` [T, hidden] in place; the rest is as in `Attention.forward`."""
        self.attention(layer, residual, self.attention_norm(residual), cosines, sines, attention)
        self.feed_forward(residual, self.feed_forward_norm(residual))


def empty_parameter(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.nn.Parameter:
    """A parameter without gradient whose values are undefined."""
    return torch.nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)
