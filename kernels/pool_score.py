"""Step 3 of the scoring: every entry takes the largest score among itself and its two neighbours on each side."""

# Kernels are written in Triton's language, which has no types for mypy.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl
from torch import Tensor

from zipage.kernels.checks import check_scores

_ENTRY_TILE = 1024


def pool_score(score: Tensor, num_entries: Tensor, is_pooled: Tensor, pooled: Tensor) -> None:
    """Max-pool the scores of some requests of a batch along their entries, and copy those of the others.

    Args:
        score: `[R, L, Hkv, n_max]` float32.
        num_entries: `[R]` integers, n of each request.
        is_pooled: `[R]` bool, which requests; one whose first compression it is, for example.
        pooled: `[R, L, Hkv, n_max]` float32, other memory than `score`, written in its first n places.

    Raises:
        ValueError: shapes, dtypes or strides that do not belong together.
    """
    check_scores(score.shape, score=score, pooled=pooled)
    if pooled.data_ptr() == score.data_ptr():
        raise ValueError("pooled must be other memory than score")
    num_requests, num_layers, num_kv_heads, max_entries = score.shape
    rows_per_request = num_layers * num_kv_heads
    grid = (num_requests * rows_per_request, triton.cdiv(max_entries, _ENTRY_TILE))
    _pool_score_kernel[grid](score, num_entries, is_pooled, pooled, rows_per_request, max_entries, _ENTRY_TILE)


@triton.jit(
    do_not_specialize=["rows_per_request", "max_entries"], do_not_specialize_on_alignment=["num_entries", "is_pooled"]
)
def _pool_score_kernel(score, num_entries, is_pooled, pooled, rows_per_request, max_entries, entry_tile: tl.constexpr):
    request = tl.program_id(0) // rows_per_request
    length = tl.load(num_entries + request).to(tl.int32)
    reach = tl.where(tl.load(is_pooled + request), 2, 0)
    entries = tl.program_id(1) * entry_tile + tl.arange(0, entry_tile)
    row = tl.program_id(0).to(tl.int64) * max_entries
    largest = tl.full((entry_tile,), float("-inf"), tl.float32)
    for distance in range(-reach, reach + 1):
        neighbours = entries + distance
        inside = (neighbours >= 0) & (neighbours < length)
        largest = tl.maximum(largest, tl.load(score + row + neighbours, mask=inside, other=float("-inf")))
    tl.store(pooled + row + entries, largest, mask=entries < length)
