"""How many blocks and query buffers fit into the memory that the KV cache may use; imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from zipage.config import EngineConfig
from zipage.engine_messages import PoolGeometry
from zipage.errors import ConfigError
from zipage.models.config import ModelConfig

GIB = 2**30
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SCORE_BYTES = 4


def choose_geometry(
    config: EngineConfig, model: ModelConfig, dtype: str, pool_bytes: int, swap_bytes: int
) -> PoolGeometry:
    """Split `pool_bytes` into KV blocks and, under a budget, query buffers, and `swap_bytes` of host memory likewise.

    The holders of all `M` query slots can reach `N_max` blocks together (arXiv 2603.08743), and what the query buffers
    leave is blocks; `_slots_and_buffers` has the rule.

    Raises:
        ConfigError: not even one request would fit.
    """
    # No sequence has more blocks than the longest one needs, and one that ends within its budget needs no slot.
    longest = -(-_max_model_len(config, model) // config.block_size)
    blocks_per_request = config.max_blocks_per_request if config.max_blocks_per_request < longest else 0
    accumulate = bool(blocks_per_request) and config.scoring.observe == "all"
    window = config.scoring.window if blocks_per_request and not accumulate else 0
    block_bytes = _block_bytes(config, model, dtype, accumulate)
    buffer_bytes = model.num_layers * window * model.num_query_heads * model.head_dim * DTYPE_BYTES[dtype]
    # More blocks than all running sequences can fill would only take memory from others.
    sizes = _Sizes(pool_bytes, block_bytes, buffer_bytes, blocks_per_request, config.max_num_seqs * longest)
    slots = buffers = host_slots = 0
    if blocks_per_request:
        if pool_bytes < sizes.request_bytes:
            raise ConfigError(
                f"the KV cache of {pool_bytes / GIB:.3g} GiB does not hold one request of {blocks_per_request} blocks "
                f"({sizes.request_bytes / GIB:.3g} GiB): raise kv_cache_gb or lower kv_budget"
            )
        slots, buffers = _slots_and_buffers(config, sizes)
        # More requests than can run at once are hardly ever swapped together.
        host_slots = min(config.max_num_seqs, swap_bytes // sizes.request_bytes)
    num_blocks = sizes.num_blocks(buffers)
    if num_blocks < 1:
        raise ConfigError(
            f"the KV cache of {pool_bytes / GIB:.3g} GiB does not hold one block ({block_bytes / GIB:.3g} GiB): "
            "raise kv_cache_gb"
        )
    return PoolGeometry(
        num_layers=model.num_layers,
        num_blocks=num_blocks,
        block_size=config.block_size,
        num_query_heads=model.num_query_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        dtype=dtype,
        num_query_slots=slots,
        num_query_buffers=buffers,
        window=window,
        accumulate=accumulate,
        num_host_blocks=min(swap_bytes // block_bytes, host_slots * blocks_per_request),
        num_host_slots=host_slots,
    )


@dataclass(frozen=True)
class _Sizes:
    """Bytes of a pool, of a block and of a query buffer; `N_max`, and the most blocks that are of use."""

    pool_bytes: int
    block_bytes: int
    buffer_bytes: int
    blocks_per_request: int
    useful_blocks: int

    @property
    def request_bytes(self) -> int:
        """What is promised with a query slot."""
        return self.blocks_per_request * self.block_bytes + self.buffer_bytes

    def num_blocks(self, buffers: int) -> int:
        """Blocks of a pool with so many query buffers."""
        return min((self.pool_bytes - buffers * self.buffer_bytes) // self.block_bytes, self.useful_blocks)


def _slots_and_buffers(config: EngineConfig, sizes: _Sizes) -> tuple[int, int]:
    """Query slots `M`, and query buffers: one for each slot, and spare ones for shadow jobs.

    With `wanted(M)` the jobs of requests of `N_max` blocks that `shadow_share` has room for at once, of the blocks that
    `M` buffers leave (at least one job where any is possible, at most `M`), `M` is the largest number, at most
    `max_num_seqs`, with

        M * (N_max * block_bytes + buffer_bytes) + ceil(wanted(M) / 2) * buffer_bytes <= pool_bytes

    and the spare buffers are as many of `wanted(M)` as `M` requests leave room for. A slot costs as much as many spare
    buffers, so not all of these are worth a slot; with less than half, shadow mode would depend on chance.
    """
    most = min(config.max_num_seqs, sizes.pool_bytes // sizes.request_bytes)
    for slots in range(most, 0, -1):
        shadow_blocks = config.max_shadow_blocks(sizes.num_blocks(slots))
        wanted = min(slots, max(min(1, shadow_blocks), shadow_blocks // (sizes.blocks_per_request - 1)))
        left = sizes.pool_bytes - slots * sizes.request_bytes
        if left >= (wanted + 1) // 2 * sizes.buffer_bytes:
            break
    return slots, slots + min(wanted, left // max(1, sizes.buffer_bytes))


def effective_max_model_len(config: EngineConfig, model: ModelConfig, geometry: PoolGeometry) -> int:
    """The longest sequence that this engine serves: the model's, the option's, or the pool's.

    The pool is a limit only where nothing is compressed.

    Raises:
        ConfigError: the option asks for more than the model or the pool has.
    """
    limit = _max_model_len(config, model)
    if geometry.num_query_slots:
        return limit
    pool_tokens = geometry.num_blocks * geometry.block_size + 1
    if config.max_model_len is not None and limit > pool_tokens:
        raise ConfigError(
            f"max_model_len must be in [2, {pool_tokens}] for a KV cache of {geometry.num_blocks} blocks of "
            f"{geometry.block_size} tokens, not {limit}: raise kv_cache_gb or set kv_budget"
        )
    return min(limit, pool_tokens)


def host_pool_bytes(config: EngineConfig) -> int:
    """Bytes of the KV cache in host memory: `kv_cache_gb`, or a quarter of the free memory up to 4 GiB.

    Raises:
        ConfigError: `kv_cache_gb` is more than the machine has free.
    """
    available = _available_memory()
    return pool_bytes(config, available, min(available // 4, 4 * GIB))


def device_pool_bytes(config: EngineConfig, free: int, total: int, working: int) -> int:
    """Bytes of the KV cache on a GPU: what weights, other programs and the largest step leave of the engine's share.

    Args:
        config: `kv_cache_gb` is not given.
        free: bytes free, with the weights in place.
        total: bytes of the device.
        working: bytes that the largest step needs.

    Raises:
        ConfigError: nothing is left.
    """
    left = int(total * config.gpu_memory_utilization) - (total - free) - working
    if left <= 0:
        used = (total - free + working) / total
        raise ConfigError(
            f"gpu_memory_utilization must be in ({used:.3f}, 1] for this model on this GPU, of which weights, other "
            f"programs and the largest step take {used:.1%}, not {config.gpu_memory_utilization}"
        )
    return left


def swap_bytes(config: EngineConfig) -> int:
    """Bytes of host memory for swapped requests: `swap_space_gb`, or an eighth of the free memory up to 4 GiB.

    Raises:
        ConfigError: `swap_space_gb` is more than the machine has free.
    """
    if config.swap_space_gb == 0:
        return 0
    available = _available_memory()
    if config.swap_space_gb is None:
        return min(available // 8, 4 * GIB)
    wanted = int(config.swap_space_gb * GIB)
    if wanted > available:
        raise ConfigError(
            f"swap_space_gb must be in [0, {available / GIB:.2f}], the free memory, not {config.swap_space_gb}"
        )
    return wanted


def pool_bytes(config: EngineConfig, available: int, default: int) -> int:
    """`kv_cache_gb` in bytes, or `default`.

    Raises:
        ConfigError: `kv_cache_gb` is more than `available` bytes.
    """
    if config.kv_cache_gb is None:
        return default
    wanted = int(config.kv_cache_gb * GIB)
    if wanted > available:
        raise ConfigError(
            f"kv_cache_gb must be in (0, {available / GIB:.2f}], the free memory, not {config.kv_cache_gb}"
        )
    return wanted


def _max_model_len(config: EngineConfig, model: ModelConfig) -> int:
    if config.max_model_len is None:
        return model.max_model_len
    if config.max_model_len > model.max_model_len:
        raise ConfigError(
            f"max_model_len must be in [2, {model.max_model_len}], the model's own limit, not {config.max_model_len}"
        )
    return config.max_model_len


def _block_bytes(config: EngineConfig, model: ModelConfig, dtype: str, accumulate: bool) -> int:
    entries = model.num_layers * model.num_kv_heads * config.block_size
    per_entry = 2 * model.head_dim * DTYPE_BYTES[dtype]
    if config.kv_budget:
        per_entry += SCORE_BYTES * (2 if accumulate else 1)
    return entries * per_entry


def _available_memory() -> int:
    """Bytes that can be taken without swapping, page cache included."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    raise ConfigError("kv_cache_gb must be given on this machine: /proc/meminfo does not tell the free memory")
