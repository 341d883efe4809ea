"""Key caches of several layers in shuffled blocks."""

import torch

NAN = float("nan")
# Triton's interpreter multiplies the bit patterns of bfloat16.
LOW_PRECISION = torch.bfloat16 if torch.cuda.is_available() else torch.float16
LAYERS = slice(1, 3)
NUM_LAYERS, NUM_KV_HEADS = 2, 2


def make_keys(device, lengths, head_dim, block_size, dtype, spread=1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys of NaN where no request has entries, elsewhere around one direction: the more `spread`, the less alike."""
    torch.manual_seed(sum(lengths) + head_dim)
    sizes = [-(-length // block_size) for length in lengths]
    num_blocks = sum(sizes) + 2
    key_cache = torch.full((4, num_blocks, NUM_KV_HEADS, block_size, head_dim), NAN)
    tables = torch.full((len(lengths), max(sizes) + 1), 1 << 40)
    for request, blocks in enumerate(torch.randperm(num_blocks).split([*sizes, 2])[:-1]):
        tables[request, : sizes[request]] = blocks
        entries = torch.arange(lengths[request])
        owned = (slice(None), blocks[entries // block_size], slice(None), entries % block_size)
        keys = torch.randn(key_cache[owned].shape) * spread + torch.randn(head_dim)
        key_cache[owned] = keys * torch.rand(*keys.shape[:-1], 1).add(0.1)
    return key_cache.to(device, dtype)[LAYERS], tables.to(device)
