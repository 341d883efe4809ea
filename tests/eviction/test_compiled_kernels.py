"""Jobs of any length run kernels that have been compiled before: nothing else about a launch makes another one."""

import inspect
from typing import Any

import pytest
import torch
from test_job import OPTIONS

from zipage.config import ScoringOptions
from zipage.engine_messages import CompressionJob, PoolGeometry
from zipage.eviction import kernel_job
from zipage.eviction.kernel_job import compile_kernels, compress_layers
from zipage.eviction.scratch import SCRATCH_BYTES
from zipage.execution.pool import KVPool, allocate_on_device
from zipage.kernels.compact import _compact_kernel

LONGEST = 20_000
BLOCK_SIZE = 16


class Launches:
    """What Triton would compile for the launches of kernels, in place of running them."""

    def __init__(self) -> None:
        self.compiled: set[tuple[Any, ...]] = set()

    def run(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = kernel.kwargs if hasattr(kernel, "kwargs") else vars(kernel)
        parameters = inspect.signature(kernel.fn).parameters
        given = dict(zip(parameters, args, strict=False)) | kwargs
        key = [kernel.__name__]
        for name, value in given.items():
            is_constant = name not in parameters or "constexpr" in str(parameters[name].annotation)
            key.append((name, value if is_constant else self._specialized(name, value, options)))
        self.compiled.add(tuple(key))

    def _specialized(self, name: str, value: Any, options: dict[str, Any]) -> Any:
        if isinstance(value, torch.Tensor):
            free = name in options.get("do_not_specialize_on_alignment", ())
            return value.dtype, free or value.data_ptr() % 16 == 0
        if isinstance(value, int):
            free = name in options.get("do_not_specialize", ())
            return abs(value) < 2**31, free or (value == 1, value % 16 == 0)
        return type(value)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    recorded = Launches()
    kernel_class = type(_compact_kernel)
    monkeypatch.setattr(kernel_class, "run", lambda kernel, *args, **kwargs: recorded.run(kernel, *args, **kwargs))
    return recorded


def large_pool(scoring: ScoringOptions) -> KVPool:
    geometry = PoolGeometry(
        num_layers=3,
        num_blocks=2,
        block_size=BLOCK_SIZE,
        num_query_heads=2,
        num_kv_heads=1,
        head_dim=16,
        dtype="float16",
        num_query_slots=2,
        num_query_buffers=4,
        window=0 if scoring.observe == "all" else scoring.window,
        accumulate=scoring.observe == "all",
    )
    return allocate_on_device(geometry, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def job(num_entries: int, num_survivors: int, in_place: bool) -> CompressionJob:
    num_blocks = -(-num_entries // BLOCK_SIZE)
    return CompressionJob(
        uid=1,
        block_table=[0] * num_blocks,
        target_blocks=[0 if in_place else 1] * (num_blocks - 1),
        num_entries=num_entries,
        num_survivors=num_survivors,
        num_observed=3,
        num_pinned=0,
        query_buffer=1,
        keep=num_entries // 2,
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_no_job_needs_what_has_not_been_compiled(name: str, launches: Launches) -> None:
    scoring = ScoringOptions(**OPTIONS[name])
    pool = large_pool(scoring)
    compile_kernels(pool, scoring, LONGEST)
    compiled = set(launches.compiled)
    batches = [[job(number, 0, False)] for number in (17, 512, 513, 1000, 4097, 16_384, 16_385, LONGEST)]
    batches += [[job(number, number - 1, True)] for number in (33, 2048, 8200)]
    batches += [
        [job(number, number % 2 * 40, number % 3 == 0) for number in range(first, first + 3)] for first in (600, 601)
    ]
    for batch in batches:
        for scratch_bytes in (1, SCRATCH_BYTES):
            assert list(compress_layers(batch, pool, scoring, scratch_bytes))
    assert launches.compiled - compiled == set()


def test_lengths_beyond_the_longest_would_be_noticed(launches: Launches) -> None:
    scoring = ScoringOptions()
    pool = large_pool(scoring)
    compile_kernels(pool, scoring, 1000)
    compiled = set(launches.compiled)
    assert list(compress_layers([job(1025, 0, False)], pool, scoring, SCRATCH_BYTES))
    assert launches.compiled - compiled


def test_numbers_of_requests_begin_at_whole_addresses() -> None:
    for count in (1, 2, 3, 5):
        batch = kernel_job._upload([job(100, 20, True)] * count, ScoringOptions(), torch.device("cpu"))
        for value in vars(batch).values():
            if isinstance(value, torch.Tensor):
                assert value.data_ptr() % 16 == 0
                assert len(value) == count
