"""The Qwen3 architecture in plain PyTorch, for training; parameters have the names of Hugging Face's Qwen3.

Rows are packed: which tokens see each other is the business of the attention and the mask that the caller passes in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tools.reasoning.vocabulary import VOCAB_SIZE

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Any], torch.Tensor]
"""`attention(query, key, value, mask) -> output`.

query is [B, Hq, T, d], key and value are [B, Hkv, T, d], output is [B, Hq, T, d]; the mask is the attention's own kind.
"""

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of the angles of RoPE, both [B, 1, T, d / 2]."""


INITIAL_STD = 0.02


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of the model. The base of RoPE leaves 12 of 32 pairs of a head without a full turn in 8,192 tokens,
    for lookups that do not depend on the distance."""

    layers: int = 8
    hidden: int = 256
    intermediate: int = 768
    query_heads: int = 8
    kv_heads: int = 4
    head_dim: int = 64
    vocab_size: int = VOCAB_SIZE
    max_length: int = 8192
    rope_theta: float = 100_000.0
    rms_norm_eps: float = 1e-6


class SelfAttention(nn.Module):
    """Grouped-query attention with normalised queries and keys and RoPE."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, shape.query_heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.query_heads * shape.head_dim, shape.hidden, bias=False)
        self.q_norm = nn.RMSNorm(shape.head_dim, shape.rms_norm_eps)
        self.k_norm = nn.RMSNorm(shape.head_dim, shape.rms_norm_eps)

    def forward(self, inputs: torch.Tensor, rotation: Rotation, attention: Attention, mask: Any) -> torch.Tensor:
        """[B, T, hidden] -> [B, T, hidden]."""
        query, key, value = (
            projection(inputs).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query = rotate(self.q_norm(query.float()), rotation).to(value.dtype)
        key = rotate(self.k_norm(key.float()), rotation).to(value.dtype)
        return self.o_proj(attention(query, key, value, mask).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, T, hidden] -> [B, T, hidden]."""
        return self.down_proj(F.silu(self.gate_proj(inputs)) * self.up_proj(inputs))


class Layer(nn.Module):
    """Attention and feed-forward, each behind its norm and added to the residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, shape.rms_norm_eps)
        self.self_attn = SelfAttention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, shape.rms_norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, residual: torch.Tensor, rotation: Rotation, attention: Attention, mask: Any) -> torch.Tensor:
        """[B, T, hidden] -> [B, T, hidden]."""
        residual = residual + self.self_attn(self.input_layernorm(residual), rotation, attention, mask)
        return residual + self.mlp(self.post_attention_layernorm(residual))


class Body(nn.Module):
    """Everything but the output embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, shape.rms_norm_eps)


class Reasoner(nn.Module):
    """A causal language model with tied embeddings."""

    def __init__(self, shape: Shape) -> None:
        """Weights are normal, those that write to the residual stream smaller by the square root of their number."""
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        frequencies = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim)
        self.frequencies: torch.Tensor
        self.register_buffer("frequencies", frequencies, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=INITIAL_STD / (2 * shape.layers) ** 0.5 if writes else INITIAL_STD)

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, attention: Attention, mask: Any
    ) -> torch.Tensor:
        """Token ids and positions [B, T] -> logits [B, T, vocab]."""
        angles = positions[:, None, :, None].float() * self.frequencies
        rotation = angles.cos(), angles.sin()
        residual = self.model.embed_tokens(token_ids)
        for layer in self.model.layers:
            residual = layer(residual, rotation, attention, mask)
        return F.linear(self.model.norm(residual), self.model.embed_tokens.weight)


def rotate(heads: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotate dimension `i` of heads [B, H, T, d] with dimension `i + d / 2`."""
    first, second = heads.chunk(2, dim=-1)
    cosines, sines = rotation
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)
