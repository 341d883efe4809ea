"""Steps 1 and 2 of the scoring where decode attention has accumulated the observed attention beside the entries."""

# Kernels are written in Triton's language, which has no types for mypy.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl
from torch import Tensor

from zipage.kernels.checks import check_scores

_ENTRY_TILE = 1024


def accumulated_score(
    observed: Tensor,
    scores: Tensor,
    block_tables: Tensor,
    num_entries: Tensor,
    num_survivors: Tensor,
    num_observed: Tensor,
    decay: float,
    score: Tensor,
) -> None:
    """Score the resident entries of several requests in several layers by what all their queries attended to.

    `s[j] = observed[j] / num_observed`, and for the first `num_survivors` entries `max(s[j], decay * scores[j])`,
    `global_score` of the reference. Window attention does the same to its score by itself.

    Args:
        observed: `[L, num_blocks, Hkv, b]` float32, summed over the observed queries.
        scores: `[L, num_blocks, Hkv, b]` float32, the survivors' scores of the last compression.
        block_tables: `[R, max_blocks]` int64.
        num_entries: `[R]` integers, n of each request; nothing is done where it is 0.
        num_survivors: `[R]` integers.
        num_observed: `[R]` integers, how many queries were observed, at least 1.
        decay: gamma of step 2; 0 is no global score.
        score: `[R, L, Hkv, n_max]` float32, written in its first n places.

    Raises:
        ValueError: shapes, dtypes or strides that do not belong together.
    """
    num_layers, num_blocks, num_kv_heads, block_size = scores.shape
    check_scores(scores.shape, observed=observed, scores=scores)
    check_scores((len(block_tables), num_layers, num_kv_heads, score.shape[-1]), score=score)
    max_entries, max_blocks = score.shape[3], block_tables.shape[1]
    grid = (triton.cdiv(max_entries, _ENTRY_TILE), num_kv_heads, len(block_tables) * num_layers)
    requests = (num_layers, num_blocks, block_tables, max_blocks, num_entries, num_survivors, num_observed)
    _accumulated_score_kernel[grid](
        observed, scores, *requests, decay, score, max_entries, num_kv_heads, block_size, _ENTRY_TILE
    )


@triton.jit(
    do_not_specialize=["num_layers", "num_blocks", "max_blocks", "max_entries"],
    do_not_specialize_on_alignment=["block_tables", "num_entries", "num_survivors", "num_observed"],
)
def _accumulated_score_kernel(
    observed, scores, num_layers, num_blocks, block_tables, max_blocks, num_entries, num_survivors, num_observed, decay,
    score, max_entries, num_kv_heads: tl.constexpr, block_size: tl.constexpr, entry_tile: tl.constexpr
):  # fmt: skip
    kv_head = tl.program_id(1)
    request, layer = tl.program_id(2) // num_layers, tl.program_id(2) % num_layers
    length = tl.load(num_entries + request).to(tl.int32)
    if tl.program_id(0) * entry_tile >= length:
        return
    entries = tl.program_id(0) * entry_tile + tl.arange(0, entry_tile)
    inside = entries < length
    survived = entries < tl.load(num_survivors + request).to(tl.int32)
    table = block_tables + request.to(tl.int64) * max_blocks
    block = layer.to(tl.int64) * num_blocks + tl.load(table + entries // block_size, mask=inside, other=0)
    rows = (block * num_kv_heads + kv_head) * block_size + entries % block_size
    mean = tl.load(observed + rows, mask=inside, other=0.0) / tl.load(num_observed + request).to(tl.float32)
    old = tl.load(scores + rows, mask=inside & survived, other=0.0)
    places = score + (tl.program_id(2).to(tl.int64) * num_kv_heads + kv_head) * max_entries + entries
    tl.store(places, tl.where(survived, tl.maximum(mean, decay * old), mean), mask=inside)
