"""Steps 4 and 5 of the scoring: how much of a key is said again by others, and what that takes from its score.

Key `i` judges the keys of its span, all of a request or those of its own block, by `C[j, i] = cos(k_j, k_i)` and itself
by 0. It spares the most recent key `j` with `C[j, i] > tau`. The mean of `C[j, i]` over the judges of a span is the
similarity of key `j`. Cosines are products of the keys as they are, divided by their lengths.

Over all pairs, only the key that a judge spares has to be searched for, from the last key on: the similarities to all
judges together come from the sum of their directions. A block of keys that fits a multiprocessor takes one pass over
all products of its keys, spans of other sizes take two.
"""

# Kernels are written in Triton's language, which has no types for mypy.
# mypy: disable-error-code="no-untyped-def"

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipage.kernels.checks import check_scores
from zipage.kernels.redundancy_full import direction_sum_kernel, full_similarity_kernel, spared_kernel
from zipage.kernels.redundancy_pairs import KeySizes, block_similarity_kernel, span_similarity_kernel

# Bytes of the keys of a block that fits a multiprocessor.
_BLOCK_BYTES = 65536
# Rows that the matrix unit takes at once, and judges beside them, so few that two programs fit a multiprocessor.
_SMALLEST_TILE = 64
_JUDGE_TILE = 32
# Numbers in a tile of keys that is read only to be added up.
_TILE_NUMBERS = 16384
_SOFTMAX_TILE = 2048


def full_similarity(
    key_cache: Tensor, block_tables: Tensor, num_entries: Tensor, tau: float, similarity: Tensor
) -> None:
    """Mean similarity of every entry to all entries of its request, in several layers.

    With `combine` this is `redundancy_full` of the reference.

    Args:
        key_cache: `[L, num_blocks, Hkv, b, d]`.
        block_tables: `[R, max_blocks]` int64.
        num_entries: `[R]` integers, n of each request.
        tau: the cosine above which keys count as similar.
        similarity: `[R, L, Hkv, n_max]` float32, written in its first n places.

    Raises:
        ValueError: shapes, dtypes or strides that do not belong together.
    """
    _check_cache(key_cache, block_tables, similarity)
    num_layers, num_blocks, num_kv_heads = key_cache.shape[:3]
    max_entries, max_blocks = similarity.shape[3], block_tables.shape[1]
    requests = (key_cache, num_layers, num_blocks, block_tables, max_blocks, num_entries)
    spared = torch.zeros(similarity.shape, dtype=torch.int64, device=similarity.device)
    inverses = torch.empty_like(similarity)
    sizes = _sizes(key_cache, _TILE_NUMBERS // triton.next_power_of_2(key_cache.shape[4]))
    num_sums = triton.cdiv(max_entries, sizes.tile)
    sums = torch.empty(*similarity.shape[:3], num_sums, sizes.dim, dtype=torch.float32, device=similarity.device)
    grid = (num_sums, num_kv_heads, len(block_tables) * num_layers)
    direction_sum_kernel[grid](*requests, sums, num_sums, inverses, max_entries, sizes, num_warps=8)
    *searched, num_warps = _search_sizes(key_cache)
    options = {"num_warps": num_warps, "num_stages": 3}
    search_grid = (triton.cdiv(max_entries, searched[0].tile), *grid[1:])
    spared_kernel[search_grid](*requests, tau, inverses, spared, max_entries, *searched, **options)
    full_similarity_kernel[grid](
        *requests, sums, num_sums, inverses, spared, similarity, max_entries, sizes, num_warps=8
    )


def lightning_similarity(
    key_cache: Tensor, block_tables: Tensor, num_entries: Tensor, tau: float, similarity: Tensor
) -> None:
    """Mean similarity of every entry to those of its own block; with `combine`, `redundancy_lightning`.

    Arguments and errors as for `full_similarity`.
    """
    _check_cache(key_cache, block_tables, similarity)
    num_layers, num_blocks, num_kv_heads, block_size, _ = key_cache.shape
    sizes = _sizes(key_cache, max(block_size, _SMALLEST_TILE))
    # Products of float32 come from registers, which a whole block would not fit.
    if key_cache.element_size() > 2 or sizes.tile * sizes.dim * key_cache.element_size() > _BLOCK_BYTES:
        return _similarity_in_spans(key_cache, block_tables, num_entries, tau, similarity, block_size)
    max_entries, max_blocks = similarity.shape[3], block_tables.shape[1]
    grid = (triton.cdiv(max_entries, sizes.tile), num_kv_heads, len(block_tables) * num_layers)
    inputs = (key_cache, num_layers, num_blocks, block_tables, max_blocks, num_entries, tau)
    num_warps = 4 if sizes.tile == _SMALLEST_TILE else 8
    judge_sizes = replace(sizes, tile=_JUDGE_TILE)
    block_similarity_kernel[grid](*inputs, similarity, max_entries, sizes, judge_sizes, num_warps=num_warps)


def combine(
    score: Tensor,
    similarity: Tensor,
    num_entries: Tensor,
    temperature: float,
    attention_weight: float,
    final: Tensor,
) -> None:
    """What selection ranks by, the softmax of step 4 and step 5.

    `attention_weight * score - (1 - attention_weight) * softmax_j(similarity / temperature)`.

    Args:
        score: `[R, L, Hkv, n_max]` float32.
        similarity: `[R, L, Hkv, n_max]` float32.
        num_entries: `[R]` integers, n of each request.
        temperature: divides the similarity, positive.
        attention_weight: lambda of step 5.
        final: `[R, L, Hkv, n_max]` float32, written in its first n places; may be `score` or `similarity`.

    Raises:
        ValueError: shapes, dtypes or strides that do not belong together.
    """
    check_scores(score.shape, score=score, similarity=similarity, final=final)
    num_requests, num_layers, num_kv_heads, max_entries = score.shape
    rows_per_request = num_layers * num_kv_heads
    tile = min(triton.next_power_of_2(max_entries), _SOFTMAX_TILE)
    _combine_kernel[(num_requests * rows_per_request,)](
        score, similarity, num_entries, final, temperature, attention_weight, rows_per_request, max_entries, tile
    )


def _check_cache(key_cache: Tensor, block_tables: Tensor, similarity: Tensor) -> None:
    if not key_cache.is_contiguous():
        raise ValueError(f"key_cache must be contiguous, its strides are {key_cache.stride()}")
    rows = (len(block_tables), key_cache.shape[0], key_cache.shape[2])
    if similarity.shape[:3] != rows or similarity.dtype != torch.float32 or not similarity.is_contiguous():
        raise ValueError(
            f"similarity must be {[*rows]} and n_max, float32, contiguous, not {list(similarity.shape)} "
            f"{similarity.dtype}"
        )


def _similarity_in_spans(
    key_cache: Tensor, block_tables: Tensor, num_entries: Tensor, tau: float, similarity: Tensor, span: int
) -> None:
    """Two passes over the pairs of keys of each `span` entries."""
    num_layers, num_blocks, num_kv_heads = key_cache.shape[:3]
    max_entries, max_blocks = similarity.shape[3], block_tables.shape[1]
    spared = torch.empty(similarity.shape, dtype=torch.int32, device=similarity.device)
    *sizes, num_warps = _search_sizes(key_cache)
    grid = (triton.cdiv(max_entries, sizes[0].tile), num_kv_heads, len(block_tables) * num_layers)
    inputs = (key_cache, num_layers, num_blocks, block_tables, max_blocks, num_entries, tau)
    options = {"has_many_spans": span < sizes[0].tile, "num_warps": num_warps, "num_stages": 3}
    for is_first_pass in (True, False):
        span_similarity_kernel[grid](
            *inputs, similarity, max_entries, spared, span, *sizes, is_first_pass=is_first_pass, **options
        )


def _search_sizes(key_cache: Tensor) -> tuple[KeySizes, KeySizes, int]:
    """A tile of keys, those that they are compared with at a time, and warps."""
    # Products of float32 are computed without the matrix unit, from registers: small tiles for many threads.
    tile, other_tile, num_warps = (128, 64, 8) if key_cache.element_size() == 2 else (32, 32, 16)
    return _sizes(key_cache, tile), _sizes(key_cache, other_tile), num_warps


def _sizes(key_cache: Tensor, tile: int) -> KeySizes:
    _, _, num_kv_heads, block_size, head_dim = key_cache.shape
    return KeySizes(num_kv_heads, head_dim, triton.next_power_of_2(head_dim), block_size, tile)


@triton.jit(do_not_specialize=["rows_per_request", "max_entries"], do_not_specialize_on_alignment=["num_entries"])
def _combine_kernel(
    score, similarity, num_entries, final, temperature, attention_weight, rows_per_request, max_entries,
    tile: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(num_entries + row // rows_per_request).to(tl.int32)
    similarity_row = similarity + row * max_entries
    score_row = score + row * max_entries
    final_row = final + row * max_entries
    # Finite, so that a tile's minus infinities are not subtracted from each other.
    largest = -1e30
    total = 0.0
    for first in range(0, length, tile):
        entries = first + tl.arange(0, tile)
        logits = tl.load(similarity_row + entries, mask=entries < length, other=float("-inf")) / temperature
        new_largest = tl.maximum(largest, tl.max(logits))
        total = total * tl.exp(largest - new_largest) + tl.sum(tl.exp(logits - new_largest))
        largest = new_largest
    for first in range(0, length, tile):
        entries = first + tl.arange(0, tile)
        logits = tl.load(similarity_row + entries, mask=entries < length, other=0.0) / temperature
        redundancy = tl.exp(logits - largest) / total
        weighted = attention_weight * tl.load(score_row + entries, mask=entries < length, other=0.0)
        tl.store(final_row + entries, weighted - (1 - attention_weight) * redundancy, mask=entries < length)
