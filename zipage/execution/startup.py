"""From engine options to a loaded decoder and an allocated pool, on the device that options and machine allow."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from zipage.config import EngineConfig
from zipage.errors import ConfigError
from zipage.execution.executor import Executor
from zipage.execution.pool import KVPool, allocate_on_device, allocate_on_host, cuda_handles
from zipage.execution.pool_size import (
    choose_geometry,
    effective_max_model_len,
    host_pool_bytes,
    pool_bytes,
    swap_bytes,
)
from zipage.messages import PoolExport, PoolGeometry
from zipage.models.config import ModelConfig, load_model_config
from zipage.models.loading import load_decoder

# Left free on a GPU for activations and the compression worker's scratch memory.
_GPU_RESERVE = 0.15


@dataclass(frozen=True)
class DecodeState:
    """A decode worker that can run steps, and what it tells the scheduler about itself."""

    executor: Executor
    export: PoolExport


def start_decoding(config: EngineConfig, pool_fd: int | None) -> DecodeState:
    """Load the model, allocate the pool and describe it.

    Args:
        config: `model` is a local directory.
        pool_fd: the memory file for the pool of a CPU engine.

    Raises:
        ConfigError: an option does not fit the machine or the model.
        ModelError: the checkpoint is not usable.
    """
    device = choose_device(config)
    if device.type == "cpu":
        torch.set_num_threads(config.threads or os.cpu_count() or 1)
    model = load_model_config(Path(config.model))
    dtype = choose_dtype(config, model, device)
    decoder = load_decoder(Path(config.model), model, getattr(torch, dtype), device)
    geometry = choose_geometry(config, model, dtype, _pool_bytes(config, device), swap_bytes(config))
    max_model_len = effective_max_model_len(config, model, geometry)
    pool = _allocate(geometry, device, pool_fd)
    export = PoolExport(
        geometry=geometry,
        device=str(device),
        max_model_len=max_model_len,
        vocab_size=model.vocab_size,
        cuda_handles=cuda_handles(pool) if device.type == "cuda" else {},
    )
    return DecodeState(Executor(decoder, pool, config, max_model_len), export)


def choose_device(config: EngineConfig) -> torch.device:
    """Raises ConfigError where `cuda` is asked for and there is none."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but this machine has no CUDA device that torch can use; allowed: cpu, auto")
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", 0)


def choose_dtype(config: EngineConfig, model: ModelConfig, device: torch.device) -> str:
    """The option, or for `auto` float32 on a CPU, where narrower arithmetic is slower and less exact."""
    if config.dtype != "auto":
        return config.dtype
    return "float32" if device.type == "cpu" else model.dtype


def _pool_bytes(config: EngineConfig, device: torch.device) -> int:
    if device.type == "cpu":
        return host_pool_bytes(config)
    free, _ = torch.cuda.mem_get_info(device)
    return pool_bytes(config, free, int(free * (1 - _GPU_RESERVE)))


def _allocate(geometry: PoolGeometry, device: torch.device, pool_fd: int | None) -> KVPool:
    if device.type == "cuda":
        return allocate_on_device(geometry, device)
    if pool_fd is None:
        raise ConfigError("a CPU engine needs the shared-memory file that its supervisor makes")
    return allocate_on_host(geometry, pool_fd)
