"""The engine's `Status`, as clients and the supervisor see it."""

from zipage.config import EngineConfig
from zipage.messages import Status
from zipage.scheduling.handshake import PoolHandshake
from zipage.scheduling.scheduler import Scheduler


def engine_status(scheduler: Scheduler, config: EngineConfig, workers: PoolHandshake, query_id: int) -> Status:
    """What the engine holds at this moment, its totals, and the integrity check."""
    counters = scheduler.counters
    return Status(
        query_id=query_id,
        model=config.model,
        max_model_len=workers.export.max_model_len,
        kv_budget=config.effective_kv_budget,
        block_size=config.block_size,
        running=scheduler.num_running,
        waiting=scheduler.num_waiting,
        compressing=scheduler.num_compressing,
        swapped=scheduler.num_swapped,
        blocks_total=scheduler.holdings.blocks.size,
        blocks_used=scheduler.holdings.blocks.num_used,
        blocks_peak=scheduler.holdings.blocks.peak,
        slots_total=scheduler.limits.num_query_slots,
        slots_used=scheduler.holdings.slots_used,
        host_blocks_total=scheduler.holdings.host_blocks.size,
        host_blocks_used=scheduler.holdings.host_blocks.num_used,
        steps=counters.steps,
        compressions=counters.compressions,
        shadow_compressions=counters.shadow_compressions,
        blocks_freed=counters.blocks_freed,
        stalled_seconds=counters.stalled_seconds,
        failed_jobs=counters.failed_jobs,
        worker_restarts=workers.restarts,
        preemptions=counters.preemptions,
        swaps=counters.swaps,
        prompt_tokens=counters.prompt_tokens,
        cached_tokens=counters.cached_tokens,
        output_tokens=counters.output_tokens,
        integrity_errors=scheduler.integrity_errors(),
    )
