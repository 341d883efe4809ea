"""A random number for every entry, to see what an eviction policy is worth.

It is made of the bits of the entry's key, so an entry has the same number at every compression, wherever and in however
large a batch that is done; keys of equal tokens differ by their position. Survivors are a sample of all entries so far.
"""

import torch
from torch import Tensor

# Dimensions whose bits are used: RoPE turns these from one position to the next.
_DIMS = 4
# Odd numbers without a pattern: the first digits of square roots.
_FACTORS = (1414213562373095049, 1732050807568877293, 2236067977499789697, 2645751311064590591)
_FLOAT_BITS = 24
_BITS = {2: torch.int16, 4: torch.int32}


def random_order(keys: Tensor) -> Tensor:
    """Random numbers of keys.

    Args:
        keys: `[..., d]`, d at least 4.

    Returns:
        `[...]` float32, in [0, 1).
    """
    bits = keys[..., :_DIMS].contiguous().view(_BITS[keys.element_size()]).long()
    mixed = torch.zeros_like(bits[..., 0])
    for dim, factor in enumerate(_FACTORS):
        # Only high bits depend on all the lower ones.
        mixed = (mixed ^ bits[..., dim]) * factor
        mixed = mixed ^ (mixed >> 32)
    return (mixed & (2**_FLOAT_BITS - 1)).float() / 2**_FLOAT_BITS


def random_order_in_blocks(key_cache: Tensor, block_tables: Tensor, row_length: int) -> Tensor:
    """Random numbers of the entries of several requests in several layers.

    Args:
        key_cache: `[L, num_blocks, Hkv, b, d]`.
        block_tables: `[R, max_blocks]` int64.
        row_length: places of each row, at least one for every entry.

    Returns:
        `[R, L, Hkv, row_length]` float32, 0 behind the last block.
    """
    num_layers, _, num_kv_heads, block_size, _ = key_cache.shape
    numbers = torch.zeros(len(block_tables), num_layers, num_kv_heads, row_length, device=key_cache.device)
    width = min(block_tables.shape[1] * block_size, row_length)
    for layer, keys in enumerate(key_cache):
        ordered = random_order(keys[block_tables, ..., :_DIMS])
        numbers[:, layer, :, :width] = ordered.transpose(1, 2).flatten(2)[..., :width]
    return numbers
