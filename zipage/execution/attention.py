"""Attention over the paged KV pool for one batch: writes the new entries, records queries, attends."""

from dataclasses import dataclass

import torch

from zipage.execution.batch import Batch
from zipage.execution.pool import KVPool
from zipage.kernels.reference import (
    paged_decode_attention,
    paged_prefill_attention,
    write_kv,
    write_queries,
)


@dataclass(frozen=True)
class PagedAttention:
    """The `attention` that a decoder calls in every layer, bound to a pool and a batch."""

    pool: KVPool
    batch: Batch

    def __call__(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Args: query [T, Hq, d]; key, value [T, Hkv, d], after RoPE. Returns: [T, Hq, d]."""
        pool, batch = self.pool, self.batch
        keys, values = pool.keys[layer], pool.values[layer]
        observed = None if pool.observed is None else pool.observed[layer]
        write_kv(keys, values, key, value, batch.slot_mapping)
        if observed is not None:
            block_size = pool.geometry.block_size
            observed[batch.slot_mapping // block_size, :, batch.slot_mapping % block_size] = 0
        if len(batch.query_rows):
            write_queries(pool.queries[layer], query[batch.query_tokens], batch.query_rows)
        return self._attend(query, keys, values, observed)

    def _attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, observed: torch.Tensor | None
    ) -> torch.Tensor:
        batch, scale = self.batch, self.pool.geometry.head_dim**-0.5
        output = torch.empty_like(query)
        if batch.num_decodes:
            output[: batch.num_decodes] = paged_decode_attention(
                query[: batch.num_decodes], keys, values, batch.decode_tables, batch.decode_lengths, scale, observed
            )
        for chunk in batch.prefills:
            tokens = slice(chunk.start, chunk.start + chunk.num_tokens)
            output[tokens] = paged_prefill_attention(
                query[tokens],
                keys,
                values,
                chunk.block_table,
                chunk.resident_length,
                scale,
                observed,
                chunk.observe_last,
            )
        return output
