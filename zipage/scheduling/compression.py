"""When a request is compressed, what the job says, and what it holds afterwards (stall mode)."""

from zipage.messages import CompressionDone, CompressionJob, TableUpdate
from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.request import Request, RequestState


def must_compress(request: Request, limits: SchedulerLimits) -> bool:
    """The prompt is computed, the last allocated block is full, and the request holds its budget in blocks or more."""
    num_blocks = len(request.block_table)
    return (
        request.query_slot >= 0
        and request.state is RequestState.RUNNING
        and num_blocks >= request.max_blocks
        and request.resident_length == num_blocks * limits.block_size
    )


def make_job(request: Request, limits: SchedulerLimits) -> CompressionJob:
    """The job that keeps `(N_max - 1) * b` entries in the first blocks of the request's next table."""
    kept_blocks = request.max_blocks - 1
    pinned = request.num_pinned
    if request.compressions == 0 and limits.scoring.pin_prompt:
        pinned = request.prompt_length
    return CompressionJob(
        uid=request.uid,
        block_table=list(request.block_table),
        target_blocks=request.next_table[:kept_blocks],
        num_entries=request.resident_length,
        num_survivors=request.num_survivors,
        num_observed=_num_accumulated(request, limits.scoring.window),
        num_pinned=pinned,
        query_slot=request.query_slot,
        keep=kept_blocks * limits.block_size,
    )


def count_compression(request: Request, done: CompressionDone, limits: SchedulerLimits) -> TableUpdate:
    """Note that the request has its survivors only, in the first blocks of its new table, and an empty block.

    Returns:
        The update that the decode worker needs before the request's next step.
    """
    request.resident_length = request.num_survivors = (request.max_blocks - 1) * limits.block_size
    request.num_pinned = done.num_pinned
    request.interval_start = request.position
    request.compressions += 1
    return TableUpdate(request.row, list(request.block_table), request.resident_length)


def _num_accumulated(request: Request, window: int) -> int:
    """Queries that `observe=all` has accumulated: the last `window` of the prompt and all later ones."""
    first_accumulated = max(request.interval_start, request.prompt_length - window, 0)
    return request.position - first_accumulated
