"""Sharing of device memory that does not work is one clear error on either side."""

import pytest
import torch

from zipage.engine_messages import PoolExport, PoolGeometry
from zipage.errors import EngineError
from zipage.execution.pool import allocate_on_device, cuda_handles, open_on_gpu

GEOMETRY = PoolGeometry(
    num_layers=1, num_blocks=2, block_size=8, num_query_heads=2, num_kv_heads=1, head_dim=8, dtype="float32"
)


def fail(*_arguments):
    raise RuntimeError("invalid argument")


def test_memory_that_cannot_be_exported(monkeypatch):
    pool = allocate_on_device(GEOMETRY, torch.device("cpu"))
    monkeypatch.setattr(torch.UntypedStorage, "_share_cuda_", fail, raising=False)
    with pytest.raises(EngineError, match="cannot share the KV pool through CUDA IPC: invalid argument"):
        cuda_handles(pool)


def test_a_handle_that_cannot_be_opened(monkeypatch):
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.UntypedStorage, "_new_shared_cuda", fail, raising=False)
    export = PoolExport(GEOMETRY, "cpu", 100, 100, {"keys": [0]})
    with pytest.raises(EngineError, match="cannot open the KV pool through CUDA IPC: invalid argument"):
        open_on_gpu(export)
