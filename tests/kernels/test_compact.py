"""kernels/compact.py against the reference: equal bits in the whole pool."""

import pytest
import torch

from zipage.kernels import compact, reference

LAYERS = slice(1, 3)
NUM_LAYERS, NUM_KV_HEADS = 2, 2
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_pool(device, dtype, num_blocks, block_size, head_dim) -> dict[str, torch.Tensor]:
    """Four layers of different numbers, of which a stride of two is compacted."""
    shape = (4, num_blocks, NUM_KV_HEADS, block_size)
    pool = {name: torch.randn(*shape, head_dim).to(device, dtype) for name in ("key_cache", "value_cache")}
    return pool | {name: torch.rand(shape, device=device) for name in ("scores", "observed")}


def make_jobs(device, lengths, keep, block_size, num_fresh) -> dict[str, torch.Tensor]:
    """Scattered tables, and targets of which the first `num_fresh` are in no table; padding is out of range."""
    sizes = [-(-length // block_size) for length in lengths]
    target_sizes = [-(-count // block_size) for count in keep]
    blocks = torch.randperm(sum(sizes) + sum(target_sizes) + 2)
    num_requests = len(lengths)
    tables = torch.full((num_requests, max(sizes) + 1), 1 << 40)
    targets = torch.full((num_requests, max(target_sizes) + 1), 1 << 40)
    kept = torch.full((num_requests, NUM_LAYERS, NUM_KV_HEADS, max(keep) + 3), 1 << 30, dtype=torch.int32)
    owned = blocks.split([*sizes, *target_sizes, 2])
    for request, (length, count) in enumerate(zip(lengths, keep, strict=True)):
        tables[request, : sizes[request]] = owned[request]
        fresh, size = owned[num_requests + request], target_sizes[request]
        targets[request, :size] = torch.cat([fresh[:num_fresh], owned[request][num_fresh:]])[:size]
        for layer in range(NUM_LAYERS):
            for head in range(NUM_KV_HEADS):
                kept[request, layer, head, :count] = torch.randperm(length)[:count].sort().values
    score = torch.rand(num_requests, NUM_LAYERS, NUM_KV_HEADS, max(lengths) + 1)
    jobs = {"score": score, "block_tables": tables, "target_blocks": targets, "kept": kept, "keep": torch.tensor(keep)}
    return {name: tensor.to(device) for name, tensor in jobs.items()}


def expect(pool: dict[str, torch.Tensor], jobs: dict[str, torch.Tensor], block_size: int) -> dict[str, torch.Tensor]:
    expected = {name: tensor.clone() for name, tensor in pool.items()}
    for request, count in enumerate(jobs["keep"].tolist()):
        targets = jobs["target_blocks"][request, : -(-count // block_size)]
        for layer in range(NUM_LAYERS):
            table, kept = jobs["block_tables"][request], jobs["kept"][request, layer, :, :count].long()
            for name in ("key_cache", "value_cache"):
                reference.compact(expected[name][LAYERS][layer], table, targets, kept)
            moved = jobs["score"][request, layer].gather(1, kept)
            reference.place_entries(expected["scores"][LAYERS][layer], targets, moved)
            expected["observed"][LAYERS][layer, targets] = 0.0
    return expected


def run(pool: dict[str, torch.Tensor], jobs: dict[str, torch.Tensor], in_place: bool) -> None:
    compact.compact(**{name: tensor[LAYERS] for name, tensor in pool.items()}, **jobs, in_place=in_place)


def check(pool, jobs, block_size, in_place) -> None:
    expected = expect(pool, jobs, block_size)
    run(pool, jobs, in_place)
    for name, tensor in pool.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(("num_fresh", "in_place"), [(0, True), (2, True), (100, True), (100, False)])
@pytest.mark.parametrize(
    ("block_size", "head_dim", "tile_bytes"),
    [(8, 64, 32768), (16, 80, 8192), (64, 96, 32768), (16, 128, 8192), (256, 64, 8192), (32, 256, 16384)],
)
def test_compaction_equals_the_reference(device, num_fresh, in_place, block_size, head_dim, tile_bytes, monkeypatch):
    """In the own first blocks, in fresh ones, and in both; tiles larger and smaller than blocks."""
    monkeypatch.setattr(compact, "_TILE_BYTES", tile_bytes)
    torch.manual_seed(block_size + head_dim)
    dtype = DTYPES[(head_dim + num_fresh + in_place) % 3]
    lengths, keep = [150, 40, 1], [130, 33, 1]
    jobs = make_jobs(device, lengths, keep, block_size, num_fresh)
    check(make_pool(device, dtype, 70 if block_size == 8 else 40, block_size, head_dim), jobs, block_size, in_place)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_place", [True, False])
def test_long_heads_with_few_evictions_keep_their_order(device, dtype, in_place):
    """Where entries move by less than a tile, almost every place is both read and written."""
    torch.manual_seed(7)
    jobs = make_jobs(device, [700], [690], block_size=16, num_fresh=0 if in_place else 100)
    check(make_pool(device, dtype, 100, 16, 64), jobs, 16, in_place)


@pytest.mark.parametrize("in_place", [True, False])
def test_requests_that_keep_nothing_or_everything_change_no_keys(device, in_place):
    torch.manual_seed(8)
    jobs = make_jobs(device, [50, 20], [50, 0], block_size=16, num_fresh=0)
    pool = make_pool(device, torch.float32, 20, 16, 64)
    before = pool["key_cache"].clone()
    check(pool, jobs, 16, in_place)
    assert torch.equal(pool["key_cache"], before)


def test_nothing_is_accumulated_where_attention_is_not_observed(device):
    torch.manual_seed(9)
    jobs = make_jobs(device, [50, 20], [30, 20], block_size=16, num_fresh=0)
    pool = make_pool(device, torch.float32, 20, 16, 64)
    expected = expect(pool, jobs, 16)
    caches = {name: tensor[LAYERS] for name, tensor in pool.items()}
    compact.compact(**(caches | {"observed": None}), **jobs, in_place=True)
    for name in ("key_cache", "value_cache", "scores"):
        assert torch.equal(pool[name], expected[name]), name


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("value_cache", lambda tensor: tensor.half()),
        ("value_cache", lambda tensor: tensor[:, :1]),
        ("scores", lambda tensor: tensor.double()),
        ("observed", lambda tensor: tensor[:1]),
        ("score", lambda tensor: tensor[1:]),
        ("target_blocks", lambda tensor: tensor[:1]),
        ("kept", lambda tensor: tensor.long()),
    ],
)
def test_wrong_arguments_are_named(device, field, wrong):
    jobs = make_jobs(device, [50, 20], [30, 20], block_size=16, num_fresh=0)
    pool = make_pool(device, torch.float32, 20, 16, 64)
    (pool if field in pool else jobs)[field] = wrong({**pool, **jobs}[field])
    with pytest.raises(ValueError, match=field):
        run(pool, jobs, in_place=True)
