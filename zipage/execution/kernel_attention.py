"""Attention of one batch on the Triton kernels, from a layer's projections on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zipage.execution.pool import KVPool
from zipage.kernels.decode_attention import DecodeWorkspace, paged_decode_attention
from zipage.kernels.prefill_attention import paged_prefill_attention
from zipage.kernels.write_kv import write_kv
from zipage.models.layers import HeadNorm


@dataclass(frozen=True)
class Chunks:
    """Prefill chunks: consecutive tokens of C rows, the last T' of a batch.

    Attributes:
        starts: [C + 1] int64, where each chunk begins among them, and T'.
        tables: [C, blocks] int64.
        lengths: [C] int64, resident lengths once the chunk is written.
        observe_last: [C] int64, how many of its last queries are observed, where attention is accumulated.
    """

    starts: Tensor
    tables: Tensor
    lengths: Tensor
    observe_last: Tensor


@dataclass(frozen=True)
class KernelBatch:
    """T tokens: first one of each of B decoding rows, then prefill chunks. What is read of tables is the rows' own.

    Attributes:
        positions: [T] int64.
        slots: [T] int64, `block * block_size + offset` of each token's KV entry, -1 for none.
        decode_tables: [B, blocks] int64.
        decode_lengths: [B] int64, resident lengths with the new entry; 0 attends to nothing.
        chunks: None where there are none.
        query_rows: [T] int64, `query_buffer * window + row in the buffer` where each query is recorded, -1 for nowhere.
    """

    positions: Tensor
    slots: Tensor
    decode_tables: Tensor
    decode_lengths: Tensor
    chunks: Chunks | None
    query_rows: Tensor


@dataclass(frozen=True)
class KernelAttention:
    """The `ProjectedAttention` that a decoder calls in every layer, bound to a pool and a batch."""

    pool: KVPool
    rotary_table: Tensor
    workspace: DecodeWorkspace
    batch: KernelBatch

    def __call__(self, layer: int, qkv: Tensor, head_norm: HeadNorm | None) -> Tensor:
        """Args: qkv [T, (Hq + 2 * Hkv) * d]. Returns: [T, Hq * d]."""
        pool, batch = self.pool, self.batch
        keys, values = pool.keys[layer], pool.values[layer]
        observed = None if pool.observed is None else pool.observed[layer]
        norm = () if head_norm is None else (head_norm.weight, head_norm.eps)
        records = pool.queries.numel() > 0
        query = write_kv(
            qkv,
            keys,
            values,
            batch.slots,
            batch.positions,
            self.rotary_table,
            *norm,
            observed=observed,
            query_slots=pool.queries[layer] if records else None,
            query_rows=batch.query_rows if records else None,
        )
        output = torch.empty_like(query)
        self._decode(query, keys, values, observed, output)
        self._prefill(query, keys, values, observed, output)
        return output.flatten(1)

    @property
    def _scale(self) -> float:
        return float(self.pool.geometry.head_dim**-0.5)

    def _decode(self, query: Tensor, keys: Tensor, values: Tensor, observed: Tensor | None, output: Tensor) -> None:
        tables, lengths = self.batch.decode_tables, self.batch.decode_lengths
        if len(lengths):
            heads, output = query[: len(lengths)], output[: len(lengths)]
            paged_decode_attention(heads, keys, values, tables, lengths, self._scale, self.workspace, observed, output)

    def _prefill(self, query: Tensor, keys: Tensor, values: Tensor, observed: Tensor | None, output: Tensor) -> None:
        chunks, num_decodes = self.batch.chunks, len(self.batch.decode_lengths)
        if chunks is not None:
            paged_prefill_attention(
                query[num_decodes:],
                keys,
                values,
                chunks.starts,
                chunks.tables,
                chunks.lengths,
                self._scale,
                observed,
                None if observed is None else chunks.observe_last,
                output[num_decodes:],
            )
