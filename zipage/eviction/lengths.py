"""How long the rows of scores are that kernels work on, and what that means for compiling them and for batches."""

from zipage.config import EngineConfig
from zipage.engine_messages import PoolExport

_SMALLEST_LENGTH = 512
# The kernel that selects is compiled once more for rows of another alignment.
_ALIGNMENT = 16


def row_length(num_entries: int) -> int:
    """Places of a row of scores that holds `num_entries`."""
    return max(-(-num_entries // _ALIGNMENT) * _ALIGNMENT, _SMALLEST_LENGTH)


def length_class(num_entries: int) -> int:
    """The power of two up to which rows of scores run through the same compiled kernels.

    These add up in the same order then, so that a request's scores do not depend on others of its class.
    """
    return 1 << (row_length(num_entries) - 1).bit_length()


def length_classes(longest: int) -> list[int]:
    """All classes of requests with up to `longest` entries, ascending."""
    classes = [_SMALLEST_LENGTH]
    while classes[-1] < longest:
        classes.append(2 * classes[-1])
    return classes


def longest_compression(config: EngineConfig, export: PoolExport) -> int:
    """Most entries that a request has when it is compressed, where it brings no larger budget of its own.

    Under `compress=always` that is the budget and one chunk of a prompt, under `pressure` all that fits.
    """
    fits = min(export.geometry.num_blocks * export.geometry.block_size, export.max_model_len)
    if config.compress == "pressure":
        return fits
    chunk = config.max_num_batched_tokens // config.block_size * config.block_size
    return min(config.effective_kv_budget + chunk, fits)
