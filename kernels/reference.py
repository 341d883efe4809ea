"""The operations of the engine in plain PyTorch: what the kernels are tested against, and the CPU path.

Shapes of one layer: key and value cache `[num_blocks, Hkv, b, d]`, scores and observed attention
`[num_blocks, Hkv, b]` float32, query slots `[M, w, Hq, d]`; all contiguous. A slot index is `block * b + offset`.
Query head `h` reads KV head `h // (Hq // Hkv)`. Attention and scores are computed in float32 whatever the cache holds.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# Bytes of keys that decode attention gathers at once: they stay in the processor's caches until they are used.
_GATHER_BYTES = 4 << 20
# Anchor scores that differ by less than one over this, in standard deviations, are equals.
ANCHOR_STEPS = 256
# Queries whose probabilities over all entries exist at once.
_QUERY_TILE = 64
# Keys whose similarities to all keys exist at once.
_JUDGE_TILE = 256


def write_kv(key_cache: Tensor, value_cache: Tensor, key: Tensor, value: Tensor, slot_mapping: Tensor) -> None:
    """Write one key and one value per token and KV head.

    Args:
        key_cache, value_cache: `[num_blocks, Hkv, b, d]`, written in place.
        key, value: `[T, Hkv, d]`, of the cache's dtype.
        slot_mapping: `[T]` int64, where each token goes, no slot twice.
    """
    _, num_kv_heads, block_size, head_dim = key_cache.shape
    heads = torch.arange(num_kv_heads, device=key.device)
    block = slot_mapping // block_size
    rows = ((block[:, None] * num_kv_heads + heads) * block_size + (slot_mapping % block_size)[:, None]).reshape(-1)
    key_cache.view(-1, head_dim).index_copy_(0, rows, key.reshape(-1, head_dim))
    value_cache.view(-1, head_dim).index_copy_(0, rows, value.reshape(-1, head_dim))


def write_queries(query_slots: Tensor, query: Tensor, rows: Tensor) -> None:
    """Record queries for a later compression.

    Args:
        query_slots: `[M, w, Hq, d]`, written in place.
        query: `[T, Hq, d]`, of the slots' dtype.
        rows: `[T]` int64, `slot * w + row in the slot`, none twice.
    """
    num_slots, window = query_slots.shape[:2]
    query_slots.view(num_slots * window, -1).index_copy_(0, rows, query.reshape(query.shape[0], -1))


def paged_decode_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    resident_lengths: Tensor,
    scale: float,
    observed: Tensor | None = None,
) -> Tensor:
    """Attention of one query per request over the request's resident entries.

    Args:
        query: `[B, Hq, d]`.
        key_cache, value_cache: `[num_blocks, Hkv, b, d]`.
        block_tables: `[B, max_blocks]` int64; past a request's own blocks any valid block.
        resident_lengths: `[B]` int64, at least 1; counts the token just written.
        scale: factor of `q . k`.
        observed: `[num_blocks, Hkv, b]` float32; gains, for every entry a query attends to, the largest probability
            among the query heads of the entry's KV head. The output is the same bits with and without it.

    Returns:
        `[B, Hq, d]`, dtype of `query`.
    """
    block_size = key_cache.shape[2]
    block_bytes = key_cache[0].numel() * 4
    output = torch.empty_like(query)
    lengths, order = resident_lengths.sort(descending=True)
    longest_first = lengths.tolist()
    first = 0
    while first < len(longest_first):
        num_blocks = -(-longest_first[first] // block_size)
        last = first + max(1, _GATHER_BYTES // (num_blocks * block_bytes))
        rows = order[first:last]
        tables = block_tables.index_select(0, rows)[:, :num_blocks]
        part = _decode_rows(query[rows], key_cache, value_cache, tables, lengths[first:last], scale, observed)
        output.index_copy_(0, rows, part)
        first = last
    return output


def _decode_rows(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    tables: Tensor,
    lengths: Tensor,
    scale: float,
    observed: Tensor | None,
) -> Tensor:
    """`paged_decode_attention` of a few requests of similar length, in one batch padded to the width of `tables`."""
    batch, num_heads, head_dim = query.shape
    num_kv_heads, block_size = key_cache.shape[1:3]
    rows = _head_block_rows(tables, num_kv_heads)
    num_entries = tables.shape[1] * block_size
    keys = _gather_blocks(key_cache, rows).view(batch * num_kv_heads, num_entries, head_dim).float()
    grouped = query.reshape(batch * num_kv_heads, -1, head_dim).float()
    logits = torch.bmm(grouped, keys.transpose(1, 2)).mul_(scale).view(batch, num_heads, num_entries)
    past_end = torch.arange(num_entries, device=query.device) >= lengths[:, None]
    logits.masked_fill_(past_end[:, None, :], float("-inf"))
    weights = logits.softmax(-1).view(batch * num_kv_heads, -1, num_entries)
    values = _gather_blocks(value_cache, rows).view(batch * num_kv_heads, num_entries, head_dim).float()
    if observed is not None:
        observed.view(-1, block_size).index_add_(0, rows, weights.amax(1).view(-1, block_size))
    return torch.bmm(weights, values).view(batch, num_heads, head_dim).to(query.dtype)


def paged_prefill_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    resident_length: int,
    scale: float,
    observed: Tensor | None = None,
    observe_last: int = 0,
) -> Tensor:
    """Causal attention of a chunk of one request, whose queries own the last `T` resident entries.

    Args:
        query: `[T, Hq, d]`.
        key_cache, value_cache: `[num_blocks, Hkv, b, d]`, the chunk's entries written.
        block_table: `[n]` int64, at least `ceil(resident_length / b)` blocks.
        resident_length: entries, the chunk's included.
        scale: factor of `q . k`.
        observed: `[num_blocks, Hkv, b]` float32; gains what `paged_decode_attention` adds, summed over the last
            `observe_last` queries of the chunk. The output is the same bits with and without it.
        observe_last: queries to observe; more than `T` is `T`.

    Returns:
        `[T, Hq, d]`, dtype of `query`.
    """
    num_queries = query.shape[0]
    keys = gather_entries(key_cache, block_table, resident_length).float()
    values = gather_entries(value_cache, block_table, resident_length).float()
    indices = torch.arange(resident_length - num_queries, resident_length, device=query.device)
    is_whole = num_queries == resident_length
    mask = None if is_whole else torch.arange(resident_length, device=query.device) <= indices[:, None]
    output = F.scaled_dot_product_attention(
        query.transpose(0, 1).float()[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=is_whole,
        scale=scale,
        enable_gqa=True,
    )[0]
    first = max(num_queries - observe_last, 0)
    if observed is not None and first < num_queries:
        _accumulate(observed, block_table, _attention_sum(query[first:], indices[first:], keys, scale))
    return output.transpose(0, 1).to(query.dtype)


def _accumulate(observed: Tensor, block_table: Tensor, amount: Tensor) -> None:
    """Add `[Hkv, n]` to the request's first `n` entries of `observed`."""
    num_kv_heads, block_size = observed.shape[1:]
    num_entries = amount.shape[1]
    num_blocks = -(-num_entries // block_size)
    padded = F.pad(amount, (0, num_blocks * block_size - num_entries))
    rows = _head_block_rows(block_table[None, :num_blocks], num_kv_heads)
    observed.view(-1, block_size).index_add_(0, rows, padded.view(-1, block_size))


def _head_block_rows(tables: Tensor, num_kv_heads: int) -> Tensor:
    """Rows of `[num_blocks * Hkv, ...]` for tables `[B, N]`, in the order `[B, Hkv, N]`."""
    heads = torch.arange(num_kv_heads, device=tables.device)
    return (tables[:, None, :] * num_kv_heads + heads[:, None]).reshape(-1)


def _gather_blocks(cache: Tensor, rows: Tensor) -> Tensor:
    """One copy of the given (block, head) rows of a cache: `[len(rows), b * ...]`."""
    return cache.view(cache.shape[0] * cache.shape[1], -1).index_select(0, rows)


def gather_entries(cache: Tensor, block_table: Tensor, num_entries: int) -> Tensor:
    """A request's first entries, in order.

    Args:
        cache: `[num_blocks, Hkv, b, ...]`.
        block_table: `[N]` int64.
        num_entries: at most `N * b`.

    Returns:
        `[Hkv, num_entries, ...]`, a copy.
    """
    num_kv_heads, block_size = cache.shape[1:3]
    num_blocks = -(-num_entries // block_size)
    blocks = _gather_blocks(cache, _head_block_rows(block_table[None, :num_blocks], num_kv_heads))
    return blocks.view(num_kv_heads, num_blocks * block_size, *cache.shape[3:])[:, :num_entries]


def window_attention_score(
    queries: Tensor, query_indices: Tensor, keys: Tensor, scale: float, reduce: str = "mean"
) -> Tensor:
    """Step 1: over queries, the mean or maximum of the largest attention probability among a KV head's query heads.

    `s[j] = reduce_i max_{h in group} softmax_{j <= index_i}(q_i . k_j * scale)`.

    Args:
        queries: `[m, Hq, d]`, m at least 1.
        query_indices: `[m]` int64, the resident index of each query's own entry, the last one it sees.
        keys: `[Hkv, n, d]`.
        scale: factor of `q . k`.
        reduce: `mean` or `max`.

    Returns:
        `[Hkv, n]` float32.
    """
    if reduce == "max":
        tiles = _strongest_attention(queries, query_indices, keys, scale)
        return torch.stack([tile.amax(1) for tile in tiles]).amax(0)
    return _attention_sum(queries, query_indices, keys, scale) / queries.shape[0]


def _attention_sum(queries: Tensor, query_indices: Tensor, keys: Tensor, scale: float) -> Tensor:
    """`window_attention_score` with the sum over queries in place of their mean."""
    total = torch.zeros(keys.shape[:2], device=keys.device)
    for tile in _strongest_attention(queries, query_indices, keys, scale):
        total += tile.sum(1)
    return total


def _strongest_attention(queries: Tensor, query_indices: Tensor, keys: Tensor, scale: float) -> Iterator[Tensor]:
    """The largest probability within each group, `[Hkv, t, n]` of some queries after the other."""
    num_kv_heads, num_entries, head_dim = keys.shape
    transposed = keys.float().transpose(1, 2)
    entries = torch.arange(num_entries, device=keys.device)
    for tile, indices in zip(queries.split(_QUERY_TILE), query_indices.split(_QUERY_TILE), strict=True):
        size = tile.shape[0]
        grouped = tile.float().view(size, num_kv_heads, -1, head_dim).transpose(0, 1)
        logits = torch.bmm(grouped.reshape(num_kv_heads, -1, head_dim), transposed).mul_(scale)
        logits = logits.view(num_kv_heads, size, -1, num_entries)
        logits.masked_fill_((entries > indices[:, None])[:, None, :], float("-inf"))
        yield logits.softmax(-1).amax(2)


def global_score(score: Tensor, old_score: Tensor, decay: float) -> Tensor:
    """Step 2, for the entries that survived an earlier compression: `max(score, decay * old_score)`."""
    return torch.maximum(score, decay * old_score)


def pool_score(score: Tensor) -> Tensor:
    """Step 3: the largest score among an entry and its two neighbours on each side. `[Hkv, n]` to `[Hkv, n]`."""
    return F.max_pool1d(score, kernel_size=5, stride=1, padding=2)


def redundancy_full(keys: Tensor, tau: float, temperature: float) -> Tensor:
    """Step 4 over all pairs of keys: how much of a key is said again by the others.

    Key `i` judges every key: `C[j, i] = cos(k_j, k_i)` and `C[i, i] = 0`. Of the keys `j != i` with `C[j, i] > tau` it
    spares the most recent, `C[j*, i] = 0` with `j*(i)` the largest such `j`, so the last copy of what was said often is
    not penalised for its earlier copies. `R = softmax_j(mean_i C[j, i] / temperature)`.

    Args:
        keys: `[Hkv, n, d]`.
        tau: the cosine above which keys count as similar.
        temperature: divides the mean similarity.

    Returns:
        `[Hkv, n]` float32, sums to 1 over a head's entries.
    """
    directions = F.normalize(keys.float(), dim=-1)
    num_entries = keys.shape[1]
    total = torch.zeros(keys.shape[:2], device=keys.device)
    for first in range(0, num_entries, _JUDGE_TILE):
        total += _similarity_sum(directions[:, first : first + _JUDGE_TILE], first, directions, tau)
    return (total / num_entries / temperature).softmax(-1)


def redundancy_lightning(keys: Tensor, block_size: int, tau: float, temperature: float) -> Tensor:
    """`redundancy_full` where keys judge, spare and are averaged inside their own block of entries only.

    The softmax is over all entries. A last block with fewer than `block_size` entries is averaged over those.

    Args:
        keys: `[Hkv, n, d]`.
        block_size: entries per block, counted from the first entry.
        tau: the cosine above which keys count as similar.
        temperature: divides the mean similarity.

    Returns:
        `[Hkv, n]` float32, sums to 1 over a head's entries.
    """
    directions = F.normalize(keys.float(), dim=-1)
    num_kv_heads, num_entries, head_dim = keys.shape
    full = num_entries // block_size * block_size
    blocks = directions[:, :full].reshape(num_kv_heads, -1, block_size, head_dim)
    mean = _similarity_sum(blocks, 0, blocks, tau).reshape(num_kv_heads, full) / block_size
    if full < num_entries:
        rest = directions[:, full:]
        mean = torch.cat([mean, _similarity_sum(rest, 0, rest, tau) / (num_entries - full)], dim=1)
    return (mean / temperature).softmax(-1)


def _similarity_sum(judges: Tensor, first_judge: int, keys: Tensor, tau: float) -> Tensor:
    """What judges hold against each key, summed over the judges: `[..., n]`.

    `judges` `[..., t, d]` are the keys from `first_judge` on among the unit-length `keys` `[..., n, d]`.
    """
    similarity = judges @ keys.transpose(-1, -2)
    entries = torch.arange(keys.shape[-2], device=keys.device)
    own = entries[first_judge : first_judge + judges.shape[-2], None] == entries
    similarity.masked_fill_(own, 0.0)
    similar = (similarity > tau) & ~own
    spared = torch.where(similar, entries, -1).amax(-1, keepdim=True)
    return similarity.masked_fill_(entries == spared, 0.0).sum(-2)


def anchor_score(keys: Tensor, first: int, last: int) -> Tensor:
    """Step 6: how much an entry says that no later entry says again.

    The content `c` of a key are the dimensions of each half that RoPE turns slowest, half of them, rounded up. Of each
    content, `z(|c_j|) - z(max_{i > j} cos(c_j, c_i))`, the maximum over all later entries and -1 where there is none,
    `z(x) = (x - mean) / standard deviation` over the entries that are scored, of a deviation of at least 1e-6. Rounded
    to multiples of `1 / ANCHOR_STEPS`, so that keys of equal tokens at equal distances are equals.

    Args:
        keys: `[Hkv, n, d]`, after RoPE, dimension `i` turned with `i + d / 2`.
        first, last: the entries that are scored, from `first` to before `last`.

    Returns:
        `[Hkv, last - first]` float32.
    """
    half, fast = keys.shape[-1] // 2, keys.shape[-1] // 4
    content = torch.cat([keys[..., fast:half], keys[..., half + fast :]], dim=-1).float()
    lengths = content.norm(dim=-1).clamp(min=1e-12)
    directions = content / lengths[..., None]
    entries = torch.arange(keys.shape[1], device=keys.device)
    similarity = torch.empty(keys.shape[0], last - first, device=keys.device)
    for start in range(first, last, _JUDGE_TILE):
        own = entries[start : min(start + _JUDGE_TILE, last)]
        cosine = directions[:, own] @ directions.transpose(1, 2)
        cosine.masked_fill_(entries <= own[:, None], -1.0)
        similarity[:, own - first] = cosine.amax(-1)
    score = _standardise(lengths[:, first:last]) - _standardise(similarity)
    return (score * ANCHOR_STEPS + 0.5).floor() / ANCHOR_STEPS


def _standardise(values: Tensor) -> Tensor:
    deviation = values.std(-1, correction=0, keepdim=True).clamp(min=1e-6)
    return (values - values.mean(-1, keepdim=True)) / deviation


def combine(score: Tensor, redundancy: Tensor, attention_weight: float) -> Tensor:
    """Step 5: `attention_weight * score - (1 - attention_weight) * redundancy`."""
    return attention_weight * score - (1 - attention_weight) * redundancy


def select_entries(final: Tensor, keep: int, tiers: Tensor) -> Tensor:
    """Step 7: the entries of the highest tier, among equals of the highest score, among equals the most recent.

    Args:
        final: `[Hkv, n]`, without NaN.
        keep: entries to select, at most n.
        tiers: `[n]` int64.

    Returns:
        `[Hkv, keep]` int64, ascending.
    """
    num_entries = final.shape[1]
    by_score = num_entries - 1 - final.flip(1).argsort(dim=1, descending=True, stable=True)
    by_tier = tiers[by_score].argsort(dim=1, descending=True, stable=True)
    return by_score.gather(1, by_tier[:, :keep]).sort(dim=1).values


def compact(cache: Tensor, block_table: Tensor, target_blocks: Tensor, kept: Tensor) -> None:
    """Move each head's kept entries, in order, to the first places of the target blocks.

    Everything is read before anything is written, so targets may be blocks of the table.

    Args:
        cache: `[num_blocks, Hkv, b, ...]`, such as keys or values; written in place.
        block_table: `[N]` int64, where the entries are.
        target_blocks: at least `ceil(keep / b)`, int64, none twice.
        kept: `[Hkv, keep]` int64 entry indices.
    """
    entries = cache.view(-1, *cache.shape[3:]).index_select(0, _entry_rows(cache, block_table, kept))
    place_entries(cache, target_blocks, entries.view(*kept.shape, *cache.shape[3:]))


def place_entries(cache: Tensor, target_blocks: Tensor, entries: Tensor) -> None:
    """Write `[Hkv, k, ...]` to the first `k` places of the target blocks; the inverse of `gather_entries`.

    Args:
        cache: `[num_blocks, Hkv, b, ...]`, written in place.
        target_blocks: at least `ceil(k / b)`, int64, none twice.
        entries: `[Hkv, k, ...]`, of the cache's dtype.
    """
    places = torch.arange(entries.shape[1], device=cache.device).expand(entries.shape[:2])
    rows = _entry_rows(cache, target_blocks, places)
    cache.view(-1, *cache.shape[3:]).index_copy_(0, rows, entries.reshape(-1, *cache.shape[3:]))


def _entry_rows(cache: Tensor, table: Tensor, indices: Tensor) -> Tensor:
    """Rows of a cache `[num_blocks * Hkv * b, ...]` for entry indices `[Hkv, k]` of a table, head by head."""
    num_kv_heads, block_size = cache.shape[1:3]
    heads = torch.arange(num_kv_heads, device=indices.device)[:, None]
    return ((table[indices // block_size] * num_kv_heads + heads) * block_size + indices % block_size).reshape(-1)
