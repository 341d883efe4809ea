"""The KV pool: tensors that the decode worker allocates and exports once and the compression worker opens."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from zipage.engine_messages import PoolExport, PoolGeometry
from zipage.errors import EngineError
from zipage.execution.memory_file import Layout, MemoryFile


@dataclass(frozen=True)
class KVPool:
    """KV cache blocks, scores of survivors, and observed queries, of all layers.

    Attributes:
        geometry: the sizes below, `b` being `block_size`.
        keys, values: [num_layers, num_blocks, num_kv_heads, b, head_dim], keys after RoPE.
        scores: [num_layers, num_blocks, num_kv_heads, b] float32, the global score of entries that survived a
            compression; of no size without query slots.
        observed: the same shape, attention that entries got from observed queries; None unless `accumulate`.
        queries: [num_layers, num_query_buffers, window, num_query_heads, head_dim].
    """

    geometry: PoolGeometry
    keys: torch.Tensor
    values: torch.Tensor
    scores: torch.Tensor
    observed: torch.Tensor | None
    queries: torch.Tensor

    @property
    def device(self) -> torch.device:
        return self.keys.device


def allocate_on_host(geometry: PoolGeometry, descriptor: int) -> KVPool:
    """Size the shared-memory file behind `descriptor` and map it.

    The file has no name, so it is gone with the last process that holds it, however that process ends.
    """
    return _pool_in(geometry, MemoryFile.sized(descriptor, _sizes(geometry)))


def open_on_host(geometry: PoolGeometry, descriptor: int) -> KVPool:
    """Map the pool that another process has sized.

    Raises:
        EngineError: the file is not as large as the geometry needs.
    """
    return _pool_in(geometry, MemoryFile(descriptor, _sizes(geometry)))


def allocate_on_device(geometry: PoolGeometry, device: torch.device) -> KVPool:
    """Allocate every tensor on its own, zeroed, as CUDA IPC shares whole allocations."""
    tensors = {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape, dtype in _layout(geometry)}
    return _pool(geometry, tensors)


def cuda_handles(pool: KVPool) -> dict[str, list[Any]]:
    """CUDA IPC handles by tensor name, as plain integers and bytes.

    Raises:
        EngineError: the allocator's memory cannot be shared.
    """
    handles = {}
    for name, shape, _ in _layout(pool.geometry):
        if math.prod(shape):
            try:
                handles[name] = list(getattr(pool, name).untyped_storage()._share_cuda_())
            except RuntimeError as error:
                raise EngineError(
                    f"cannot share the KV pool through CUDA IPC: {error} (PYTORCH_ALLOC_CONF must not ask for "
                    "expandable segments, and a container must let its processes share device memory)"
                ) from error
    return handles


def open_on_gpu(export: PoolExport) -> KVPool:
    """Open the tensors behind the handles of `cuda_handles` in another process.

    Raises:
        EngineError: the driver, the allocator or the container cannot share device memory.
    """
    # Opening a handle does not start CUDA by itself, and crashes without it.
    torch.cuda.init()
    tensors, device = {}, torch.device(export.device)
    for name, shape, dtype in _layout(export.geometry):
        if name not in export.cuda_handles:
            tensors[name] = torch.empty(shape, dtype=dtype, device=device)
            continue
        try:
            storage = torch.UntypedStorage._new_shared_cuda(*export.cuda_handles[name])
        except RuntimeError as error:
            raise EngineError(f"cannot open the KV pool through CUDA IPC: {error}") from error
        tensors[name] = torch.empty(0, dtype=dtype, device=storage.device).set_(storage).view(shape)
    return _pool(export.geometry, tensors)


def open_pool(export: PoolExport, descriptor: int | None) -> KVPool:
    """Open an exported pool, through its CUDA IPC handles or the inherited memory file.

    Raises:
        EngineError: it cannot be shared with this process.
    """
    if export.device != "cpu":
        return open_on_gpu(export)
    if descriptor is None:
        raise EngineError("the KV pool is in host memory, but this process has no descriptor of it")
    return open_on_host(export.geometry, descriptor)


def _layout(geometry: PoolGeometry) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    cache_dtype: torch.dtype = getattr(torch, geometry.dtype)
    entries = (geometry.num_layers, geometry.num_blocks, geometry.num_kv_heads, geometry.block_size)
    buffers = (geometry.num_layers, geometry.num_query_buffers, geometry.window)
    layout: list[tuple[str, tuple[int, ...], torch.dtype]] = [
        ("keys", (*entries, geometry.head_dim), cache_dtype),
        ("values", (*entries, geometry.head_dim), cache_dtype),
        ("queries", (*buffers, geometry.num_query_heads, geometry.head_dim), cache_dtype),
        ("scores", entries if geometry.num_query_slots else (0,), torch.float32),
    ]
    if geometry.accumulate:
        layout.append(("observed", entries, torch.float32))
    return layout


def _pool(geometry: PoolGeometry, tensors: dict[str, torch.Tensor]) -> KVPool:
    return KVPool(geometry=geometry, observed=tensors.pop("observed", None), **tensors)


def _pool_in(geometry: PoolGeometry, file: MemoryFile) -> KVPool:
    names = [name for name, _, _ in _layout(geometry)]
    return _pool(geometry, dict(zip(names, file.tensors, strict=True)))


def _sizes(geometry: PoolGeometry) -> Layout:
    return [(shape, dtype) for _, shape, dtype in _layout(geometry)]
