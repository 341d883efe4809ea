"""Pools that two processes share: host memory, and device memory whose sharing does not work."""

import os
import tempfile

import pytest
import torch
from small_pools import small_geometry

from zipage.engine_messages import PoolExport
from zipage.errors import EngineError
from zipage.execution.pool import allocate_on_device, allocate_on_host, cuda_handles, open_on_gpu, open_on_host

GEOMETRY = small_geometry()


def test_a_pool_in_host_memory_is_the_same_for_all_who_open_it():
    with tempfile.TemporaryFile() as file:
        ours = allocate_on_host(GEOMETRY, file.fileno())
        ours.values[0, 3] = 7.0
        size = os.fstat(file.fileno()).st_size
        theirs = open_on_host(GEOMETRY, file.fileno())
        assert torch.equal(theirs.values, ours.values)
        assert not theirs.keys.any()
        # A worker that knows of a pool before this one must not touch the file.
        with pytest.raises(EngineError, match=f"a memory file has {size} bytes, and its tensors need"):
            open_on_host(small_geometry(num_blocks=9), file.fileno())
        open_on_host(small_geometry(num_blocks=7), file.fileno())
        assert os.fstat(file.fileno()).st_size == size


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
