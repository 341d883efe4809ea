"""From engine options to a loaded decoder and an allocated pool, on the device that options and machine allow."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from zipage.config import EngineConfig
from zipage.engine_messages import PoolExport, PoolGeometry
from zipage.errors import ConfigError
from zipage.execution.executor import Executor
from zipage.execution.pool import KVPool, allocate_on_device, allocate_on_host, cuda_handles
from zipage.execution.pool_size import (
    choose_geometry,
    device_pool_bytes,
    effective_max_model_len,
    host_pool_bytes,
    pool_bytes,
    swap_bytes,
)
from zipage.models.config import ModelConfig, load_model_config
from zipage.models.decoder import Decoder
from zipage.models.loading import load_decoder

if TYPE_CHECKING:
    from zipage.execution.device_executor import DeviceExecutor


@dataclass(frozen=True)
class DecodeState:
    """A decode worker that can run steps, and what it tells the scheduler about itself."""

    executor: "Executor | DeviceExecutor"
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
    geometry = choose_geometry(config, model, dtype, _pool_bytes(config, decoder, device), swap_bytes(config))
    max_model_len = effective_max_model_len(config, model, geometry)
    pool = _allocate(geometry, device, pool_fd)
    export = PoolExport(
        geometry=geometry,
        device=str(device),
        max_model_len=max_model_len,
        vocab_size=model.vocab_size,
        cuda_handles=cuda_handles(pool) if device.type == "cuda" else {},
    )
    return DecodeState(_executor(decoder, pool, config, max_model_len), export)


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


def _pool_bytes(config: EngineConfig, decoder: Decoder, device: torch.device) -> int:
    if device.type == "cpu":
        return host_pool_bytes(config)
    if config.kv_cache_gb is None:
        # Triton takes long to import, and a CPU engine does without.
        from zipage.execution.working_memory import working_bytes

        working = working_bytes(decoder, config)
        return device_pool_bytes(config, *torch.cuda.mem_get_info(device), working)
    free, _ = torch.cuda.mem_get_info(device)
    return pool_bytes(config, free, free)


def _allocate(geometry: PoolGeometry, device: torch.device, pool_fd: int | None) -> KVPool:
    if device.type == "cuda":
        return allocate_on_device(geometry, device)
    if pool_fd is None:
        raise ConfigError("a CPU engine needs the shared-memory file that its supervisor makes")
    return allocate_on_host(geometry, pool_fd)


def _executor(decoder: Decoder, pool: KVPool, config: EngineConfig, max_model_len: int) -> "Executor | DeviceExecutor":
    if pool.device.type == "cpu":
        return Executor(decoder, pool, config, max_model_len)
    # Triton takes long to import, and a CPU engine does without.
    from zipage.execution.device_executor import DeviceExecutor
    from zipage.execution.warm_up import warm_up

    executor = DeviceExecutor(decoder, pool, config, max_model_len)
    executor.graphs.capture()
    warm_up(executor, config, max_model_len)
    return executor
