"""Cases of the kernel benchmark: scoring, selection and compaction of several requests in all layers at once."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tools.kernel_work import Work, num_copies, scaled_error, unequal
from zipage.eviction.selection import entry_tiers
from zipage.kernels import reference
from zipage.kernels.anchor_score import anchor_score
from zipage.kernels.compact import compact
from zipage.kernels.global_score import accumulated_score
from zipage.kernels.pool_score import pool_score
from zipage.kernels.redundancy import combine, full_similarity, lightning_similarity
from zipage.kernels.select_entries import select_entries
from zipage.kernels.window_score import window_score

DTYPE = torch.bfloat16
# Scores are float32 throughout.
ALLOWED = 1e-3
# A cosine that rounding may move to the other side of tau is this near to it.
NEAR_TAU = 1e-6
# Rounding to steps may move an anchor's score by one of them, and a little for float32.
ALLOWED_STEPS = 1.01
DECAY, TAU, TEMPERATURE, ATTENTION_WEIGHT, SINKS = 0.8, 0.5, 0.4, 0.2, 4


def window(
    device: torch.device,
    requests: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    entries: int,
    window: int,
    block_size: int,
) -> Work:
    """Window attention and global score; all but the last block are survivors of an earlier compression."""
    rows = requests * layers * kv_heads
    num_bytes = rows * (
        entries * (head_dim * DTYPE.itemsize + 8) + window * heads // kv_heads * head_dim * DTYPE.itemsize
    )
    copies = num_copies(num_bytes, device)
    tables, num_blocks = _tables(device, copies, requests, entries, block_size)
    keys = torch.randn(layers, num_blocks, kv_heads, block_size, head_dim, dtype=DTYPE, device=device)
    old = torch.rand(layers, num_blocks, kv_heads, block_size, device=device).mul_(2 / entries)
    queries = torch.randn(layers, copies * requests, window, heads, head_dim, dtype=DTYPE, device=device)
    buffers = torch.randperm(copies * requests, device=device).view(copies, requests)
    window_rows = torch.arange(window, device=device).expand(requests, window).contiguous()
    indices = window_rows + entries - window
    survivors = entries - block_size
    counts = [_full(device, requests, value) for value in (entries, survivors, window)]
    score = torch.empty(copies, requests, layers, kv_heads, entries, device=device)
    scale = head_dim**-0.5

    def call(copy: int) -> None:
        window_score(
            queries, keys, old, tables[copy], counts[0], counts[1], buffers[copy], window_rows, indices, counts[2],
            scale, DECAY, "max", score[copy],
        )  # fmt: skip

    def expected(request: int, layer: int) -> Tensor:
        own_keys = reference.gather_entries(keys[layer], tables[0, request], entries)
        own_old = reference.gather_entries(old[layer], tables[0, request], survivors)
        own_queries = queries[layer, buffers[0, request]]
        result = reference.window_attention_score(own_queries, indices[request], own_keys, scale, "max")
        result[:, :survivors] = reference.global_score(result[:, :survivors], own_old, DECAY)
        return result

    def check() -> float:
        call(0)
        return scaled_error(score[0], _all(expected, requests, layers), ALLOWED)

    operations = 2 * rows * entries * window * (heads // kv_heads) * head_dim
    return Work([partial(call, copy) for copy in range(copies)], check, num_bytes, operations)


def accumulated(device: torch.device, requests: int, layers: int, kv_heads: int, entries: int, block_size: int) -> Work:
    """The score of accumulated attention and global score."""
    num_bytes = 12 * requests * layers * kv_heads * entries
    copies = num_copies(num_bytes, device)
    tables, num_blocks = _tables(device, copies, requests, entries, block_size)
    observed, old = torch.rand(2, layers, num_blocks, kv_heads, block_size, device=device)
    survivors = entries - block_size
    counts = [_full(device, requests, value) for value in (entries, survivors, 3)]
    score = torch.empty(copies, requests, layers, kv_heads, entries, device=device)

    def call(copy: int) -> None:
        accumulated_score(observed, old, tables[copy], *counts, DECAY, score[copy])

    def expected(request: int, layer: int) -> Tensor:
        result = reference.gather_entries(observed[layer], tables[0, request], entries) / 3
        own_old = reference.gather_entries(old[layer], tables[0, request], survivors)
        result[:, :survivors] = reference.global_score(result[:, :survivors], own_old, DECAY)
        return result

    def check() -> float:
        call(0)
        return scaled_error(score[0], _all(expected, requests, layers), ALLOWED)

    return Work([partial(call, copy) for copy in range(copies)], check, num_bytes)


def pool(device: torch.device, requests: int, layers: int, kv_heads: int, entries: int) -> Work:
    """Max-pooling of every request's scores."""
    num_bytes = 8 * requests * layers * kv_heads * entries
    score = torch.rand(num_copies(num_bytes, device), requests, layers, kv_heads, entries, device=device)
    pooled = torch.empty_like(score)
    lengths, is_pooled = _full(device, requests, entries), torch.ones(requests, dtype=torch.bool, device=device)
    calls = [partial(pool_score, rows, lengths, is_pooled, out) for rows, out in zip(score, pooled, strict=True)]

    def check() -> float:
        calls[0]()
        return unequal(
            pooled[0], _all(lambda request, layer: reference.pool_score(score[0, request, layer]), requests, layers)
        )

    return Work(calls, check, num_bytes)


def redundancy(
    device: torch.device,
    requests: int,
    layers: int,
    kv_heads: int,
    head_dim: int,
    entries: int,
    block_size: int,
    full: bool,
) -> Work:
    """Similarity of keys of which about half of the pairs are more similar than tau."""
    rows = requests * layers * kv_heads
    num_bytes = rows * entries * (head_dim * DTYPE.itemsize + 4)
    copies = num_copies(num_bytes, device)
    tables, num_blocks = _tables(device, copies, requests, entries, block_size)
    keys = _alike_keys(device, (layers, num_blocks, kv_heads, block_size, head_dim))
    lengths = _full(device, requests, entries)
    similarity = torch.empty(copies, requests, layers, kv_heads, entries, device=device)
    operation = full_similarity if full else lightning_similarity
    calls = [partial(operation, keys, tables[copy], lengths, TAU, similarity[copy]) for copy in range(copies)]

    def expected(request: int, layer: int, tau: float) -> Tensor:
        own = reference.gather_entries(keys[layer], tables[0, request], entries)
        if full:
            return reference.redundancy_full(own, tau, TEMPERATURE)
        return reference.redundancy_lightning(own, block_size, tau, TEMPERATURE)

    def check() -> float:
        calls[0]()
        actual = (similarity[0] / TEMPERATURE).softmax(-1)
        # In small blocks, sparing another key moves an entry by several percent: both sides of tau are right.
        closest = _all(partial(expected, tau=TAU), requests, layers)
        for tau in (TAU - NEAR_TAU, TAU + NEAR_TAU):
            other = _all(partial(expected, tau=tau), requests, layers)
            closest = torch.where((actual - other).abs() < (actual - closest).abs(), other, closest)
        return scaled_error(actual, closest, ALLOWED)

    return Work(calls, check, num_bytes, 2 * rows * entries * (entries if full else block_size) * head_dim)


def anchors(
    device: torch.device,
    requests: int,
    layers: int,
    kv_heads: int,
    head_dim: int,
    entries: int,
    recent: int,
    block_size: int,
) -> Work:
    """Anchor scores of all entries but sinks and recent ones; of keys, half of the dimensions count."""
    rows, first, last = requests * layers * kv_heads, SINKS, entries - recent
    num_bytes = rows * (entries * head_dim // 2 * DTYPE.itemsize + (last - first) * 4)
    copies = num_copies(num_bytes, device)
    tables, num_blocks = _tables(device, copies, requests, entries, block_size)
    keys = _alike_keys(device, (layers, num_blocks, kv_heads, block_size, head_dim))
    ends = [_full(device, requests, value) for value in (entries, first, last)]
    similarity, anchor = torch.empty(2, copies, requests, layers, kv_heads, entries, device=device)
    calls = [partial(anchor_score, keys, tables[copy], *ends, similarity[copy], anchor[copy]) for copy in range(copies)]

    def expected(request: int, layer: int) -> Tensor:
        own = reference.gather_entries(keys[layer], tables[0, request], entries)
        return reference.anchor_score(own, first, last)

    def check() -> float:
        calls[0]()
        distance = (anchor[0, ..., first:last] - _all(expected, requests, layers)).abs().max()
        return float(distance) * reference.ANCHOR_STEPS / ALLOWED_STEPS

    # Every pair of entries once: a key is compared with later ones only.
    return Work(calls, check, num_bytes, rows * entries**2 * (head_dim // 2))


def combination(device: torch.device, requests: int, layers: int, kv_heads: int, entries: int) -> Work:
    """Softmax of the similarity, and the weighted difference from the score."""
    num_bytes = 12 * requests * layers * kv_heads * entries
    shape = (2, num_copies(num_bytes, device), requests, layers, kv_heads, entries)
    score, similarity = torch.rand(shape, device=device)
    final, lengths = torch.empty_like(score), _full(device, requests, entries)
    calls = [
        partial(combine, *rows, lengths, TEMPERATURE, ATTENTION_WEIGHT, out)
        for *rows, out in zip(score, similarity, final, strict=True)
    ]

    def check() -> float:
        calls[0]()
        expected = reference.combine(score[0], (similarity[0] / TEMPERATURE).softmax(-1), ATTENTION_WEIGHT)
        return scaled_error(final[0], expected, ALLOWED)

    return Work(calls, check, num_bytes)


def selection(
    device: torch.device, requests: int, layers: int, kv_heads: int, entries: int, keep: int, recent: int
) -> Work:
    """Selection with sinks and recent entries that are always kept."""
    num_bytes = 4 * requests * layers * kv_heads * (entries + keep)
    final = torch.randn(num_copies(num_bytes, device), requests, layers, kv_heads, entries, device=device)
    kept = torch.empty(*final.shape[:-1], keep, dtype=torch.int32, device=device)
    counts = [_full(device, requests, value) for value in (entries, keep, recent, 0)]
    calls = [
        partial(select_entries, rows, counts[0], counts[1], SINKS, counts[2], counts[3], out)
        for rows, out in zip(final, kept, strict=True)
    ]
    tiers = entry_tiers(entries, SINKS, recent, 0, device)

    def expected(request: int, layer: int) -> Tensor:
        return reference.select_entries(final[0, request, layer], keep, tiers).int()

    def check() -> float:
        calls[0]()
        return unequal(kept[0], _all(expected, requests, layers))

    return Work(calls, check, num_bytes)


def compaction(
    device: torch.device,
    requests: int,
    layers: int,
    kv_heads: int,
    head_dim: int,
    entries: int,
    keep: int,
    block_size: int,
    in_place: bool,
) -> Work:
    """Compaction of random survivors, in place or to other blocks."""
    num_bytes = requests * layers * kv_heads * keep * (4 * head_dim * DTYPE.itemsize + 12)
    copies = num_copies(num_bytes, device)
    tables, num_blocks = _tables(device, copies, requests, entries + (0 if in_place else keep), block_size)
    num_targets = keep // block_size
    targets = tables[..., :num_targets].contiguous()
    tables = tables if in_place else tables[..., num_targets:].contiguous()
    caches = torch.randn(2, layers, num_blocks, kv_heads, block_size, head_dim, dtype=DTYPE, device=device)
    scores = torch.rand(layers, num_blocks, kv_heads, block_size, device=device)
    score = torch.rand(copies, requests, layers, kv_heads, entries, device=device)
    kept = score.argsort(dim=-1)[..., :keep].sort(dim=-1).values.int()
    count = _full(device, requests, keep)
    calls = [
        partial(
            compact, caches[0], caches[1], scores, None, score[copy], tables[copy], targets[copy], kept[copy], count,
            in_place,
        )
        for copy in range(copies)
    ]  # fmt: skip

    def check() -> float:
        expected_caches, expected_scores = caches.clone(), scores.clone()
        for request in range(requests):
            for layer in range(layers):
                own = kept[0, request, layer].long()
                for cache in expected_caches:
                    reference.compact(cache[layer], tables[0, request], targets[0, request], own)
                moved = score[0, request, layer].gather(1, own)
                reference.place_entries(expected_scores[layer], targets[0, request], moved)
        calls[0]()
        return max(unequal(caches, expected_caches), unequal(scores, expected_scores))

    return Work(calls, check, num_bytes)


def _tables(device: torch.device, copies: int, requests: int, entries: int, block_size: int) -> tuple[Tensor, int]:
    """Tables `[copies, requests, entries / b]` of shuffled blocks, none twice, and the number of blocks."""
    num_blocks = copies * requests * (entries // block_size)
    return torch.randperm(num_blocks, device=device).view(copies, requests, -1), num_blocks


def _alike_keys(device: torch.device, shape: tuple[int, ...]) -> Tensor:
    """Random keys around one direction."""
    keys = torch.randn(shape, dtype=DTYPE, device=device)
    keys += torch.randn(shape[-1], dtype=DTYPE, device=device)
    return keys


def _full(device: torch.device, requests: int, value: int) -> Tensor:
    return torch.full((requests,), value, device=device)


def _all(expected: Callable[[int, int], Tensor], requests: int, layers: int) -> Tensor:
    """`[R, L, ...]` of what `expected(request, layer)` gives."""
    return torch.stack(
        [torch.stack([expected(request, layer) for layer in range(layers)]) for request in range(requests)]
    )
