"""Random scoring: fair, the same at every compression, and the same on both paths."""

import pytest
import torch
from test_job import make_case
from test_kernel_batch import check_equal, make_jobs, random_pool
from test_kernel_job import kept_by_kernels, on_device

from zipage.config import ScoringOptions
from zipage.eviction.job import run_job
from zipage.eviction.random_order import random_order, random_order_in_blocks

RANDOM = ScoringOptions(order="random", recent_share=0.0, anchor_share=0.0, pin_share=0.0, window=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_are_uniform_and_do_not_depend_on_where_a_key_stands(dtype):
    torch.manual_seed(1)
    keys = torch.randn(3, 4000, 8).to(dtype)
    numbers = random_order(keys)
    assert numbers.dtype == torch.float32
    # Ten classes of 1,200 expected, whose deviation is 33.
    counts = torch.histc(numbers, 10, 0, 1)
    assert (counts - 1200).abs().max() < 170
    order = torch.randperm(4000)
    assert torch.equal(random_order(keys[:, order]), numbers[:, order])


def test_keys_that_differ_in_one_bit_have_other_numbers():
    keys = torch.ones(2, 8)
    keys[1, 3] = torch.nextafter(keys[1, 3], torch.tensor(2.0))
    first, second = random_order(keys).tolist()
    assert abs(first - second) > 1e-3


def test_numbers_in_blocks_are_those_of_each_entry():
    torch.manual_seed(2)
    cache, tables = torch.randn(2, 6, 3, 8, 16), torch.tensor([[4, 1, 0], [2, 5, 3]])
    numbers = random_order_in_blocks(cache, tables, 32)
    for request, table in enumerate(tables):
        for layer in range(2):
            keys = torch.cat([cache[layer, block] for block in table], dim=1)
            assert torch.equal(numbers[request, layer, :, :24], random_order(keys))
    assert numbers[..., 24:].count_nonzero() == 0


def test_a_job_keeps_the_largest_numbers_beside_sinks_and_recent_entries():
    case = make_case(RANDOM)
    table, layer, head = case.job.block_table, 1, 0
    keys = torch.cat([case.before.keys[layer, block, head] for block in table])
    always = [*range(4), *range(52, 56)]
    numbers = random_order(keys)
    numbers[always] = 2.0
    expected = numbers.topk(48).indices.sort().values
    assert torch.equal(run_job(case.job, case.pool, RANDOM).kept[layer, head], expected)


def test_kernels_keep_what_the_reference_keeps():
    jobs, pool = make_jobs(RANDOM), random_pool(RANDOM)
    batch = on_device(pool)
    for row, job in zip(kept_by_kernels(jobs, batch, RANDOM), jobs, strict=True):
        assert torch.equal(row, run_job(job, pool, RANDOM).kept)
    check_equal(batch, pool, is_exact=False)
