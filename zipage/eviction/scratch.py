"""How much device memory compressions need on their way, and how they are cut so that it stays bounded."""

from zipage.config import ScoringOptions
from zipage.engine_messages import PoolGeometry
from zipage.eviction.lengths import row_length

SCRATCH_BYTES = 256 * 2**20

_NUMBER_BYTES = 4
# What kernels.window_score cuts the entries of a head into, at most and at least.
_MAX_CHUNKS, _SMALLEST_CHUNK = 16, 512
# Numbers in a tile of keys whose directions kernels.redundancy adds up.
_TILE_NUMBERS = 16384


def layer_bytes(num_entries: int, keep: int, geometry: PoolGeometry, scoring: ScoringOptions) -> int:
    """Bytes that one layer of a request takes at most, as `kernel_job` and the kernels' wrappers allocate them.

    Args:
        num_entries: of the longest request of a batch.
        keep: most entries that a request of the batch keeps.
        geometry: the pool's.
        scoring: tells what is computed.
    """
    length = row_length(num_entries)
    # What the layers before have kept goes when that of the next ones has come.
    numbers = length + 2 * keep
    if scoring.observe != "all":
        chunks = min(_MAX_CHUNKS, -(-length // _SMALLEST_CHUNK))
        numbers += chunks * scoring.window * (geometry.num_query_heads // geometry.num_kv_heads)
    if scoring.pooling != "off":
        numbers += length
    if scoring.anchor_share:
        # Anchor scores, similarities on the way, and what selection ranks by, where that is not memory of its own.
        numbers += 3 * length
    if scoring.order == "random":
        # The numbers, and on the way to them 64 bits of four dimensions and of what is mixed of them.
        numbers += (1 + 4 + 2 * 4 + 3 * 2) * length
    if scoring.redundancy == "lightning":
        numbers += 2 * length
    if scoring.redundancy == "full":
        dim = 1 << (geometry.head_dim - 1).bit_length()
        # The similarity, the lengths of keys, what they are spared (64 bits), and sums of directions.
        numbers += 4 * length + (length * dim // _TILE_NUMBERS + 1) * dim
    return geometry.num_kv_heads * numbers * _NUMBER_BYTES


def requests_at_once(bytes_of_layer: int, limit: int) -> int:
    """Of how many requests one layer fits into `limit` bytes; at least one, whatever it takes."""
    return max(1, limit // bytes_of_layer)


def layers_at_once(bytes_of_layer: int, num_requests: int, limit: int) -> int:
    """How many layers of so many requests fit into `limit` bytes; at least one, whatever it takes."""
    return max(1, limit // (bytes_of_layer * num_requests))
