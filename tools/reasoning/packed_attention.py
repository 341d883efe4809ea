"""Causal attention inside the documents of packed rows: flex attention on a GPU, a dense mask elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from tools.reasoning.model import Attention


@dataclass(frozen=True, slots=True)
class PackedAttention:
    """An attention, and what makes its mask from the documents of packed rows, [B, T] int32."""

    attention: Attention
    make_mask: Callable[[torch.Tensor], Any]


def packed_attention(device: torch.device) -> PackedAttention:
    """The one that suits a device."""
    if device.type != "cuda":
        return PackedAttention(dense_attention, dense_mask)
    create = torch.compile(create_block_mask)
    return PackedAttention(block_attention, lambda documents: block_mask(documents, create))


def dense_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`model.Attention` with a mask of [B, 1, T, T] booleans."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)


def dense_mask(documents: torch.Tensor) -> torch.Tensor:
    """True where the later of two tokens of a document sees the earlier one: [B, T] -> [B, 1, T, T]."""
    length = documents.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    return (documents[:, None, :, None] == documents[:, None, None, :]) & causal


def block_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: BlockMask) -> torch.Tensor:
    """`model.Attention` that skips blocks without a visible pair; fast only where the caller is compiled."""
    output = flex_attention(query, key, value, block_mask=mask, enable_gqa=True)
    assert isinstance(output, torch.Tensor)
    return output


@torch.no_grad()
def block_mask(documents: torch.Tensor, create: Callable[..., BlockMask] = create_block_mask) -> BlockMask:
    """The same visibility as `dense_mask`, by blocks."""

    def visible(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (query >= key) & (documents[row, query] == documents[row, key])

    rows, length = documents.shape
    return create(visible, B=rows, H=None, Q_LEN=length, KV_LEN=length, device=documents.device)
