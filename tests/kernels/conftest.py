"""Where the kernels run, and caches for them."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch


@dataclass
class PagedCache:
    """One layer's cache `[num_blocks, Hkv, b, d]`, and the tables and resident lengths of requests in it."""

    key: torch.Tensor
    value: torch.Tensor
    tables: torch.Tensor
    lengths: torch.Tensor

    def owned(self) -> torch.Tensor:
        """`[num_blocks, Hkv, b]`: which places hold an entry."""
        return ~self.key.isnan().any(-1)

    def readable(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values in which what no request owns is 0, for references that multiply it by 0."""
        return self.key.nan_to_num(), self.value.nan_to_num()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where a kernel's inputs go."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(float("nan")))


@pytest.fixture
def random_rows(device: torch.device) -> Callable[..., torch.Tensor]:
    """Makes random rows `[n, m]` between columns of NaN."""

    def make(num_rows: int, num_columns: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
        values = torch.randn(num_rows, num_columns, generator=torch.Generator().manual_seed(seed))
        padded = torch.full((num_rows, num_columns + 32), float("nan"), dtype=dtype, device=device)
        padded[:, 16:-16] = values.to(device, dtype)
        return padded[:, 16:-16]

    return make


@pytest.fixture
def paged_cache(device) -> Callable[..., PagedCache]:
    """Makes a `PagedCache` of random entries in scattered blocks; NaN fills what no request owns, block 0 for one.

    Places of the tables past a request's own blocks name block 0.
    """

    def make(
        lengths: list[int],
        num_kv_heads: int,
        block_size: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        table_dtype: torch.dtype = torch.int64,
    ) -> PagedCache:
        torch.manual_seed(sum(lengths) + block_size + head_dim)
        num_owned = [-(-length // block_size) for length in lengths]
        num_blocks = sum(num_owned) + 3
        key, value = (torch.full((num_blocks, num_kv_heads, block_size, head_dim), torch.nan) for _ in range(2))
        free = (torch.randperm(num_blocks - 1) + 1).tolist()
        tables = torch.zeros(len(lengths), max(num_owned) + 2, dtype=table_dtype)
        for request, length in enumerate(lengths):
            for place in range(num_owned[request]):
                block = tables[request, place] = free.pop()
                held = min(block_size, length - place * block_size)
                for cache in (key, value):
                    cache[block, :, :held] = torch.randn(num_kv_heads, held, head_dim)
        on_device = [tensor.to(device, dtype) for tensor in (key, value)]
        return PagedCache(*on_device, tables.to(device), torch.tensor(lengths, dtype=table_dtype, device=device))

    return make
