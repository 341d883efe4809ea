"""When a request is compressed, in which mode, what the job says, and what the request holds afterwards.

In *stall* mode the request sits out, and its survivors are moved together inside its own blocks. In *shadow* mode it
goes on decoding behind its full blocks while the survivors are copied to fresh ones, and its table is exchanged at the
end.
"""

from zipage.engine_messages import CompressionDone, CompressionJob
from zipage.scheduling.holdings import Holdings
from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.needs import is_binding, next_compression, observation_start
from zipage.scheduling.request import JobKind, OpenJob, Request, RequestState, RetiringBlocks
from zipage.scheduling.step_plan import StepPlan


def is_due(request: Request, limits: SchedulerLimits) -> bool:
    """Whether the request must be compressed before its next token is computed."""
    if request.job is not None or request.query_buffer < 0:
        return False
    if request.state not in (RequestState.PREFILLING, RequestState.RUNNING):
        return False
    if is_binding(request, limits):
        return request.resident_length == request.next_compression
    return request.is_pressed


def can_shadow(request: Request, holdings: Holdings, shadow_blocks: int, free_blocks: int) -> bool:
    """Whether a request whose compression is due may go on decoding meanwhile.

    Args:
        request: its compression is due.
        holdings: the engine's.
        shadow_blocks: blocks that shadow jobs hold already.
        free_blocks: those that nobody else needs meanwhile; the request takes one of them behind its full ones.
    """
    limits = holdings.limits
    fresh = request.max_blocks - 1
    return (
        shadow_blocks + fresh <= limits.max_shadow_blocks
        and free_blocks > fresh
        and holdings.num_spare_buffers > 0
        # A prompt waits: its chunks would write far more than one block behind its full ones.
        and request.position >= request.prefill_length
        and request.resident_length == len(request.block_table) * limits.block_size
    )


def begin_shadow(request: Request, holdings: Holdings, step: StepPlan) -> None:
    """Take blocks for the survivors; from `step` on, the request's tokens belong to its next interval.

    The queries of that interval go to a spare buffer, because the job reads those of the last one meanwhile.
    """
    fresh = holdings.blocks.take(request.max_blocks - 1)
    message = _make_message(request, fresh, holdings.limits)
    # Tokens of planned steps are still missing among the entries that the job reads.
    after, lent = request.steps_planned, holdings.lend_buffer(request)
    request.job = OpenJob(JobKind.SHADOW, message, request.resident_length, fresh, after, lent)
    request.stalls.is_shadow = True
    _begin_interval(request, len(fresh) * holdings.limits.block_size, holdings.limits)
    step.update_recording(request)


def begin_stall(request: Request, holdings: Holdings) -> bool:
    """Choose the blocks that a request, which no step touches, holds after its compression, and stop it.

    They are the first `N_max` of its table, but for those that others hold too, in place of which it takes free ones:
    a shared block is never written. Blocks that will be written leave the index.

    Returns:
        Whether there were free blocks enough; else nothing has begun.
    """
    blocks, head = holdings.blocks, request.block_table[: request.max_blocks]
    # Not always the first ones: of two requests that compute the same tokens side by side, the index has some
    # blocks of the one and some of the other.
    shared = [block for block in head if blocks.references(block) > 1]
    if blocks.num_free < len(shared):
        return False
    blocks.forget(block for block in request.block_table if blocks.references(block) == 1)
    fresh = dict(zip(shared, blocks.take(len(shared)), strict=True))
    next_table = [fresh.get(block, block) for block in head]
    message = _make_message(request, next_table[: request.max_blocks - 1], holdings.limits)
    request.move_to(RequestState.COMPRESSING)
    request.stalls.is_shadow = False
    request.job = OpenJob(JobKind.STALL, message, request.resident_length, next_table, request.steps_planned)
    return True


def finish_compression(request: Request, job: OpenJob, done: CompressionDone, holdings: Holdings) -> None:
    """Exchange the request's table for its survivors and what it has decoded behind them meanwhile."""
    limits = holdings.limits
    kept = (request.max_blocks - 1) * limits.block_size
    tail = request.resident_length - job.num_entries
    request.job, request.is_pressed, request.in_place = None, False, False
    request.compressions += 1
    request.num_survivors, request.num_pinned = kept, done.num_pinned
    request.resident_length = kept + tail
    if job.kind is JobKind.SHADOW:
        holdings.buffers.give_back([job.lent_buffer])
        num_read = limits.blocks_for(job.num_entries)
        _retire(request, request.block_table[:num_read], holdings)
        request.block_table = job.next_table + request.block_table[num_read:]
    else:
        stays = set(job.next_table)
        holdings.blocks.give_back([block for block in request.block_table if block not in stays])
        request.block_table = job.next_table
        _begin_interval(request, kept, limits)
        request.go_on()
    holdings.reserve_again(request)


def drop_job(request: Request, holdings: Holdings) -> None:
    """Take back the blocks and the buffer of a job that will not be done; the request's KV is to be computed again."""
    if request.job is not None:
        held = set(request.block_table)
        holdings.blocks.give_back([block for block in request.job.next_table if block not in held])
        if request.job.lent_buffer >= 0:
            holdings.buffers.give_back([request.job.lent_buffer])
        request.job = None
    request.is_broken = request.is_paused = True


def free_retired_blocks(request: Request, holdings: Holdings) -> None:
    """Give back blocks that no planned step reads any more."""
    retiring = request.retiring
    if retiring is not None and request.steps_returned >= retiring.after:
        holdings.blocks.give_back(retiring.blocks)
        request.retiring = None


def _make_message(request: Request, target_blocks: list[int], limits: SchedulerLimits) -> CompressionJob:
    return CompressionJob(
        uid=request.uid,
        block_table=list(request.block_table),
        target_blocks=target_blocks,
        num_entries=request.resident_length,
        num_survivors=request.num_survivors,
        num_observed=request.position - request.observe_from,
        num_pinned=request.num_pinned,
        query_buffer=request.query_buffer,
        keep=len(target_blocks) * limits.block_size,
    )


def _begin_interval(request: Request, resident_length: int, limits: SchedulerLimits) -> None:
    """Begin the observed interval at the next token, with `resident_length` entries."""
    request.interval_start = request.position
    request.next_compression = next_compression(request, resident_length, limits)
    request.observe_from = observation_start(request, resident_length, limits)


def _retire(request: Request, blocks: list[int], holdings: Holdings) -> None:
    request.retiring = RetiringBlocks(blocks, request.steps_planned)
    free_retired_blocks(request, holdings)
