"""Compression jobs on the kernels against the reference path, entry for entry."""

from dataclasses import replace

import pytest
import test_job
import torch
from test_job import OPTIONS, Case, make_case

from zipage.config import PAPER_SCORING, ScoringOptions
from zipage.engine_messages import CompressionJob
from zipage.errors import EngineError
from zipage.eviction.job import run_job
from zipage.eviction.kernel_job import compile_kernels, compress_layers
from zipage.eviction.scratch import SCRATCH_BYTES
from zipage.execution.pool import KVPool

# Triton's interpreter multiplies the bit patterns of bfloat16.
LOW_PRECISION = torch.bfloat16 if torch.cuda.is_available() else torch.float16
TENSORS = ("keys", "values", "scores", "observed", "queries")


@pytest.fixture(autouse=True)
def head_that_the_kernels_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_job, "HEAD_DIM", 16)


def on_device(pool: KVPool) -> KVPool:
    """A copy where the kernels run."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = {name: getattr(pool, name) for name in TENSORS}
    return replace(
        pool, **{name: None if tensor is None else tensor.clone().to(device) for name, tensor in tensors.items()}
    )


def kept_by_kernels(
    jobs: list[CompressionJob], pool: KVPool, scoring: ScoringOptions, scratch_bytes: int = SCRATCH_BYTES
) -> list[torch.Tensor]:
    """`[L, Hkv, keep]` of each job on the CPU, as the reference path gives it."""
    kept = torch.cat([*compress_layers(jobs, pool, scoring, scratch_bytes)], dim=1).long().cpu()
    return [row[:, :, : job.keep] for row, job in zip(kept, jobs, strict=True)]


def check_against_reference(case: Case) -> None:
    pool = on_device(case.pool)
    (kept,) = kept_by_kernels([case.job], pool, case.scoring)
    assert torch.equal(kept, run_job(case.job, case.pool, case.scoring).kept)
    for name in TENSORS:
        actual, reference = getattr(pool, name), getattr(case.pool, name)
        if name == "scores":
            torch.testing.assert_close(actual.cpu(), reference, rtol=1e-5, atol=1e-7)
        elif reference is not None:
            assert torch.equal(actual.cpu(), reference)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("num_survivors", [0, 48])
@pytest.mark.parametrize("in_place", [True, False])
def test_kernels_keep_what_the_reference_keeps(name, num_survivors, in_place):
    check_against_reference(make_case(ScoringOptions(**OPTIONS[name]), 8, num_survivors, 13, in_place))


@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("dtype", [torch.float32, LOW_PRECISION])
def test_kernels_take_any_block_size_and_dtype(block_size, dtype):
    check_against_reference(make_case(PAPER_SCORING, block_size, dtype=dtype))


def test_accumulated_attention_needs_a_pool_that_has_it():
    case = make_case(ScoringOptions())
    with pytest.raises(EngineError, match="accumulates no attention"):
        kept_by_kernels([case.job], on_device(case.pool), ScoringOptions(observe="all"))


@pytest.mark.parametrize("scoring", [ScoringOptions(), PAPER_SCORING, ScoringOptions(observe="all")])
def test_compiling_touches_nothing(scoring):
    case = make_case(scoring)
    pool = on_device(case.pool)
    compile_kernels(pool, scoring, 56)
    for name in TENSORS:
        if getattr(pool, name) is not None:
            assert torch.equal(getattr(pool, name).cpu(), getattr(case.pool, name))
