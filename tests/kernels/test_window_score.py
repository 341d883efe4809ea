"""kernels/window_score.py and kernels/global_score.py against the reference, request by request and layer by layer."""

from dataclasses import dataclass, replace

import pytest
import torch

from zipage.kernels import reference, window_score
from zipage.kernels.global_score import accumulated_score

NAN = float("nan")
# Triton's interpreter multiplies the bit patterns of bfloat16.
LOW_PRECISION = torch.bfloat16 if torch.cuda.is_available() else torch.float16
TOLERANCE = {torch.float32: 1e-5, LOW_PRECISION: 1e-3}
FIRST_LAYER, NUM_LAYERS = 1, 2
WINDOW = 12


@dataclass
class Batch:
    """What the requests of a batch own holds random numbers, everything else NaN or indices out of range."""

    queries: torch.Tensor
    key_cache: torch.Tensor
    scores: torch.Tensor
    observed: torch.Tensor
    block_tables: torch.Tensor
    num_entries: torch.Tensor
    num_survivors: torch.Tensor
    query_buffers: torch.Tensor
    query_rows: torch.Tensor
    query_indices: torch.Tensor
    num_queries: torch.Tensor
    scale: float = 0.2
    decay: float = 0.8


def make_batch(device, lengths, counts, heads=(4, 2), head_dim=64, block_size=16, dtype=torch.float32) -> Batch:
    torch.manual_seed(sum(lengths) + head_dim)
    num_heads, num_kv_heads = heads
    sizes = [-(-length // block_size) for length in lengths]
    num_blocks, num_requests = sum(sizes) + 3, len(lengths)
    key_cache = torch.full((4, num_blocks, num_kv_heads, block_size, head_dim), NAN)
    scores, observed = (torch.full((4, num_blocks, num_kv_heads, block_size), NAN) for _ in range(2))
    queries = torch.full((4, num_requests + 2, WINDOW, num_heads, head_dim), NAN)
    tables = torch.full((num_requests, max(sizes) + 1), 1 << 40)
    rows, indices = (torch.full((num_requests, max(counts)), 1 << 30) for _ in range(2))
    survivors = [length // 3 if request % 2 else 0 for request, length in enumerate(lengths)]
    blocks, buffers = torch.randperm(num_blocks).split([*sizes, 3])[:-1], torch.randperm(num_requests + 2)[:-2]
    for request, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        table = tables[request, : sizes[request]] = blocks[request]
        entries = torch.arange(length)
        owned = (slice(None), table[entries // block_size], slice(None), entries % block_size)
        key_cache[owned] = torch.randn(key_cache[owned].shape)
        observed[owned] = torch.rand(observed[owned].shape) * 3
        old = (owned[0], owned[1][: survivors[request]], owned[2], owned[3][: survivors[request]])
        scores[old] = torch.rand(scores[old].shape) * 2 / max(length, 1)
        rows[request, :count] = torch.randperm(WINDOW)[:count]
        indices[request, :count] = torch.randperm(length)[:count].sort().values
        queries[:, buffers[request], rows[request, :count]] = torch.randn(4, count, num_heads, head_dim)
    layers = slice(FIRST_LAYER, FIRST_LAYER + NUM_LAYERS)
    return Batch(
        queries.to(device, dtype)[layers],
        key_cache.to(device, dtype)[layers],
        scores.to(device)[layers],
        observed.to(device)[layers],
        *(
            tensor.to(device)
            for tensor in (tables, torch.tensor(lengths), torch.tensor(survivors), buffers, rows, indices)
        ),
        torch.tensor(counts, device=device),
    )


def run(batch: Batch, reduce: str = "mean") -> torch.Tensor:
    num_layers, _, num_kv_heads = batch.scores.shape[:3]
    shape = (len(batch.num_entries), num_layers, num_kv_heads, int(batch.num_entries.max()) + 3)
    score = torch.full(shape, NAN, device=batch.scores.device)
    window_score.window_score(
        batch.queries,
        batch.key_cache,
        batch.scores,
        batch.block_tables,
        batch.num_entries,
        batch.num_survivors,
        batch.query_buffers,
        batch.query_rows,
        batch.query_indices,
        batch.num_queries,
        batch.scale,
        batch.decay,
        reduce,
        score,
    )
    return score


def with_old_scores(batch: Batch, request: int, layer: int, score: torch.Tensor) -> torch.Tensor:
    survivors = int(batch.num_survivors[request])
    old = reference.gather_entries(batch.scores[layer], batch.block_tables[request], survivors)
    score[:, :survivors] = reference.global_score(score[:, :survivors], old, batch.decay)
    return score


def check(batch: Batch, score: torch.Tensor, logits_error: float = 0.0, reduce: str = "mean") -> None:
    """Compare all requests; logits that are wrong by `logits_error` make probabilities wrong by twice its share."""
    for request, length in enumerate(batch.num_entries.tolist()):
        count = int(batch.num_queries[request])
        rows, indices = batch.query_rows[request, :count], batch.query_indices[request, :count]
        for layer in range(NUM_LAYERS if length else 0):
            keys = reference.gather_entries(batch.key_cache[layer], batch.block_tables[request], length)
            queries = batch.queries[layer, batch.query_buffers[request], rows]
            expected = reference.window_attention_score(queries, indices, keys, batch.scale, reduce)
            tolerance = TOLERANCE[batch.key_cache.dtype] + 2 * logits_error
            torch.testing.assert_close(
                score[request, layer, :, :length],
                with_old_scores(batch, request, layer, expected),
                atol=tolerance / length,
                rtol=tolerance,
            )
        assert score[request, :, :, length:].isnan().all()


@pytest.mark.parametrize(
    ("heads", "head_dim", "block_size", "dtype"),
    [
        ((2, 2), 64, 16, torch.float32),
        ((4, 2), 80, 8, torch.float32),
        ((7, 1), 96, 32, torch.float32),
        ((8, 2), 128, 64, LOW_PRECISION),
        ((8, 1), 128, 256, LOW_PRECISION),
        ((16, 1), 64, 16, LOW_PRECISION),
        ((4, 2), 256, 16, torch.float32),
    ],
)
def test_window_score_equals_the_reference(device, heads, head_dim, block_size, dtype):
    batch = make_batch(device, [100, 37, 1], [WINDOW, 3, 1], heads, head_dim, block_size, dtype)
    check(batch, run(batch))


@pytest.mark.parametrize(("group", "dtype"), [(8, torch.float32), (16, LOW_PRECISION)])
@pytest.mark.parametrize("max_chunks", [2, 32])
def test_chunks_of_entries_and_tiles_of_queries_add_up(device, group, dtype, max_chunks, monkeypatch):
    """More queries than one product takes, over requests of one, two and many chunks."""
    monkeypatch.setattr(window_score, "_SMALLEST_CHUNK", 64)
    monkeypatch.setattr(window_score, "_MAX_CHUNKS", max_chunks)
    batch = make_batch(device, [140, 64, 65], [12, 9, 2], heads=(group, 1), dtype=dtype)
    check(batch, run(batch))


@pytest.mark.parametrize("max_chunks", [1, 16])
@pytest.mark.parametrize("dtype", [torch.float32, LOW_PRECISION])
def test_maximum_over_queries_equals_the_reference(device, dtype, max_chunks, monkeypatch):
    """Also over several tiles of queries, of which the later ones find what the earlier ones have left."""
    monkeypatch.setattr(window_score, "_MAX_CHUNKS", max_chunks)
    monkeypatch.setattr(window_score, "_SMALLEST_CHUNK", 32)
    batch = make_batch(device, [150, 40, 9], [12, 5, 1], (16, 1), 64, 16, dtype)
    check(batch, run(batch, "max"), reduce="max")


def test_queries_that_see_few_entries_are_no_trouble(device, monkeypatch):
    """The first query sees one entry, and whole chunks are out of sight for all but the last."""
    monkeypatch.setattr(window_score, "_SMALLEST_CHUNK", 64)
    batch = make_batch(device, [200], [3])
    batch.query_indices[0] = torch.tensor([0, 62, 199])
    check(batch, run(batch))


def test_large_logits_do_not_overflow(device):
    batch = replace(make_batch(device, [90], [4]), scale=400.0)
    # A sum of d products rounds d times, each time by up to 2 ** -24 of what is summed so far. The roundings go both
    # ways, so sqrt(d) of them count, of sums no larger than |q| |k|: errors of about 0.01 in logits of thousands.
    head_dim = batch.key_cache.shape[-1]
    lengths = [tensor.nan_to_num().norm(dim=-1).max().item() for tensor in (batch.queries, batch.key_cache)]
    logits_error = head_dim**0.5 * 2.0**-24 * lengths[0] * lengths[1] * batch.scale
    assert logits_error < 0.05
    check(batch, run(batch), logits_error)


def test_requests_without_entries_are_left_alone(device):
    batch = make_batch(device, [33, 0], [2, 0])
    check(batch, run(batch))


def test_accumulated_score_is_the_mean_over_observed_queries(device):
    batch = make_batch(device, [100, 37, 0, 70], [1, 1, 0, 1], block_size=8)
    num_observed = torch.tensor([3, 40, 0, 1], device=device)
    score = torch.full((4, NUM_LAYERS, 2, 103), NAN, device=device)
    accumulated_score(
        batch.observed,
        batch.scores,
        batch.block_tables,
        batch.num_entries,
        batch.num_survivors,
        num_observed,
        batch.decay,
        score,
    )
    for request, length in enumerate(batch.num_entries.tolist()):
        for layer in range(NUM_LAYERS if length else 0):
            total = reference.gather_entries(batch.observed[layer], batch.block_tables[request], length)
            expected = with_old_scores(batch, request, layer, total / num_observed[request])
            torch.testing.assert_close(score[request, layer, :, :length], expected)
        assert score[request, :, :, length:].isnan().all()


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("queries", lambda batch: batch.queries[:1]),
        ("queries", lambda batch: batch.queries[..., :32].contiguous()),
        ("queries", lambda batch: batch.queries[:, :, :, :3].contiguous()),
        ("queries", lambda batch: batch.queries.half()),
        ("key_cache", lambda batch: batch.key_cache.transpose(0, 1).contiguous().transpose(0, 1)),
        ("scores", lambda batch: batch.scores[:, 1:].contiguous()),
        ("scores", lambda batch: batch.scores.double()),
        ("query_rows", lambda batch: batch.query_rows[:1]),
        ("query_indices", lambda batch: batch.query_indices[:, :2].contiguous()),
    ],
)
def test_wrong_arguments_are_named(device, field, wrong):
    batch = make_batch(device, [20, 30], [2, 3])
    with pytest.raises(ValueError, match=field):
        run(replace(batch, **{field: wrong(batch)}))
