"""Geometries of pools that are as small as a test wants them."""

from typing import Any

from zipage.engine_messages import PoolGeometry


def small_geometry(**changes: Any) -> PoolGeometry:
    """One layer, one KV head of 16 float32 numbers, eight blocks of 16 tokens, no query slots, but for `changes`."""
    fields = {
        "num_layers": 1,
        "num_blocks": 8,
        "block_size": 16,
        "num_query_heads": 1,
        "num_kv_heads": 1,
        "head_dim": 16,
        "dtype": "float32",
    }
    return PoolGeometry(**fields | changes)
