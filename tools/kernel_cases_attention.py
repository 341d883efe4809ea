"""Cases of the kernel benchmark: paged attention."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.kernel_work import Work, num_copies, scaled_error
from zipage.kernels import reference
from zipage.kernels.decode_attention import decode_workspace, paged_decode_attention
from zipage.kernels.prefill_attention import paged_prefill_attention

DTYPE = torch.bfloat16
# Probabilities and outputs are rounded to bfloat16.
ALLOWED = 1e-2


def decode(
    device: torch.device,
    batch: int,
    context: int,
    heads: int,
    group: int,
    head_dim: int,
    block_size: int,
    shortest: int | None = None,
) -> Work:
    """One query for each of `batch` requests in scattered blocks.

    They have `context` resident entries, or, evenly spread and in any order, from `shortest` to `context`.
    """
    kv_heads = heads // group
    lengths = torch.linspace(context if shortest is None else shortest, context, batch, device=device).long()
    lengths = lengths[torch.randperm(batch, device=device)]
    num_entries = int(lengths.sum())
    num_bytes = 2 * (num_entries * kv_heads + batch * heads) * head_dim * DTYPE.itemsize
    copies = num_copies(num_bytes, device)
    caches, tables = _scattered(device, copies * batch, context, kv_heads, head_dim, block_size)
    tables = tables.view(copies, batch, -1)
    query = torch.randn(copies, batch, heads, head_dim, dtype=DTYPE, device=device)
    scale = head_dim**-0.5
    workspace = decode_workspace(heads, kv_heads, head_dim, device)

    def call(copy: int) -> Tensor:
        return paged_decode_attention(query[copy], caches[0], caches[1], tables[copy], lengths, scale, workspace)

    def check() -> float:
        expected = reference.paged_decode_attention(query[0], caches[0], caches[1], tables[0], lengths, scale)
        return scaled_error(call(0), expected, ALLOWED)

    # The same memory, taken for keys and values without pages.
    dense = caches.view(2, copies, batch, kv_heads, context, head_dim)

    def sdpa(copy: int) -> Tensor:
        keys, values = dense[:, copy]
        return F.scaled_dot_product_attention(query[copy].unsqueeze(2), keys, values, scale=scale, enable_gqa=True)

    return Work(
        [partial(call, copy) for copy in range(copies)],
        check,
        num_bytes,
        4 * num_entries * heads * head_dim,
        [partial(sdpa, copy) for copy in range(copies) if shortest is None],
    )


def prefill(
    device: torch.device, chunks: int, tokens: int, heads: int, kv_heads: int, head_dim: int, block_size: int
) -> Work:
    """Chunks of `tokens` queries, each a whole prompt."""
    num_bytes = 2 * chunks * tokens * (heads + kv_heads) * head_dim * DTYPE.itemsize
    copies = num_copies(num_bytes, device)
    caches, tables = _scattered(device, copies * chunks, tokens, kv_heads, head_dim, block_size)
    tables = tables.view(copies, chunks, -1)
    query = torch.randn(copies, chunks * tokens, heads, head_dim, dtype=DTYPE, device=device)
    lengths = torch.full((chunks,), tokens, device=device)
    cu_seqlens = torch.arange(0, chunks * tokens + 1, tokens, device=device)
    scale = head_dim**-0.5

    def call(copy: int) -> Tensor:
        return paged_prefill_attention(query[copy], caches[0], caches[1], cu_seqlens, tables[copy], lengths, scale)

    def check() -> float:
        parts = [
            reference.paged_prefill_attention(part, caches[0], caches[1], table, tokens, scale)
            for part, table in zip(query[0].split(tokens), tables[0], strict=True)
        ]
        return scaled_error(call(0), torch.cat(parts), ALLOWED)

    dense = caches.view(2, copies, chunks, kv_heads, tokens, head_dim)
    queries = query.view(copies, chunks, tokens, heads, head_dim).transpose(2, 3)

    def sdpa(copy: int) -> Tensor:
        keys, values = dense[:, copy]
        return F.scaled_dot_product_attention(queries[copy], keys, values, is_causal=True, scale=scale, enable_gqa=True)

    pairs = tokens * (tokens + 1) // 2
    return Work(
        [partial(call, copy) for copy in range(copies)],
        check,
        num_bytes,
        4 * chunks * pairs * heads * head_dim,
        [partial(sdpa, copy) for copy in range(copies)],
    )


def _scattered(
    device: torch.device, requests: int, entries: int, kv_heads: int, head_dim: int, block_size: int
) -> tuple[Tensor, Tensor]:
    """Random keys and values `[2, num_blocks, Hkv, b, d]`, and tables `[requests, entries / b]` of shuffled blocks."""
    num_blocks = requests * entries // block_size
    caches = torch.randn(2, num_blocks, kv_heads, block_size, head_dim, dtype=DTYPE, device=device)
    return caches, torch.randperm(num_blocks, device=device).view(requests, -1)
