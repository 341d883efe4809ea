"""The next tokens of one running request: how many, and the blocks that they need."""

from zipage.engine_messages import RowWork
from zipage.scheduling.compression import begin_shadow, can_shadow, is_due
from zipage.scheduling.lives import Lives
from zipage.scheduling.needs import allowed_tokens, next_blocks
from zipage.scheduling.request import Request, RequestState
from zipage.scheduling.room import make_room, stall_in_room


def plan_request(lives: Lives, request: Request, tokens_left: int) -> int:
    """Plan the request's next tokens; returns how many (0 where it has to wait)."""
    if request.is_paused or request.is_complete:
        lives.end_stall(request)
        return 0
    if _is_held_up(lives, request):
        lives.begin_stall(request)
        return 0
    lives.end_stall(request)
    num_tokens = min(request.num_uncomputed, tokens_left, allowed_tokens(request, lives.limits))
    num_tokens = _affordable_tokens(lives, request, num_tokens)
    if num_tokens <= 0:
        return 0
    missing = _missing_blocks(lives, request, num_tokens)
    if not make_room(lives, request, missing):
        lives.step.note_short(request)
        return 0
    new_blocks = lives.holdings.extend(request, missing) if missing else []
    request.advance(num_tokens)
    if request.num_uncomputed == 0:
        request.pending_tokens += 1
        if request.state is RequestState.PREFILLING:
            request.move_to(RequestState.RUNNING)
    lives.holdings.register_full_blocks(request)
    lives.step.planned.append(request)
    lives.step.work.append(RowWork(request.row, num_tokens, new_blocks))
    return num_tokens


def _is_held_up(lives: Lives, request: Request) -> bool:
    """Whether the request has to wait for a compression, which begins here where it can in shadow mode."""
    if request.job is not None:
        return allowed_tokens(request, lives.limits) <= 0
    return is_due(request, lives.limits) and not begin_shadow_compression(lives, request)


def _missing_blocks(lives: Lives, request: Request, num_tokens: int) -> int:
    return lives.limits.blocks_for(request.resident_length + num_tokens) - len(request.block_table)


def _affordable_tokens(lives: Lives, request: Request, num_tokens: int) -> int:
    """How many of its next tokens a guaranteed request may compute: where blocks are short, those that it has reserved.

    One that has outgrown its budget is compressed instead.
    """
    missing = _missing_blocks(lives, request, num_tokens)
    if not request.is_guaranteed or missing <= lives.holdings.blocks.num_free:
        return num_tokens
    affordable = min(num_tokens, request.reserved_blocks * lives.limits.block_size - request.resident_length)
    if affordable <= 0:
        request.is_pressed = True
        lives.step.note_short(request)
    return affordable


def begin_compressions(lives: Lives) -> None:
    """Compress the requests that are due and that no step touches: in shadow mode where there are blocks for it."""
    # One that begins may have another preempted.
    for request in list(lives.running):
        if request.in_flight or not _is_compressed_next(lives, request):
            continue
        if not begin_shadow_compression(lives, request):
            lives.begin_stall(request)
            stall_in_room(lives, request)


def waits_for_jobs(lives: Lives, steps_in_flight: int) -> bool:
    """Whether steps that do not run beside jobs have to wait for them. Jobs begin once no step is in flight.

    A compression that is due then, but lacks blocks, holds nobody up: others may have to go on to give them back.
    """
    if steps_in_flight:
        due = [request for request in lives.running if _is_compressed_next(lives, request)]
        for request in due:
            lives.begin_stall(request)
        if due:
            return True
    else:
        begin_compressions(lives)
    return bool(lives.at_work) or any(request.job is not None for request in (*lives.running, *lives.swapped.values()))


def _is_compressed_next(lives: Lives, request: Request) -> bool:
    return is_due(request, lives.limits) and not (request.is_paused or request.is_complete)


def begin_shadow_compression(lives: Lives, request: Request) -> bool:
    """Compress a request that is due while it goes on decoding; returns whether there are blocks for that.

    Where there are none, it is compressed in place, also if blocks come free before that can begin.
    """
    if request.in_place:
        return False
    step, unneeded = lives.step, _unneeded_blocks(lives)
    if not can_shadow(request, lives.holdings, step.shadow_blocks, unneeded):
        request.in_place = True
        return False
    begin_shadow(request, lives.holdings, step)
    step.shadow_blocks += request.max_blocks - 1
    # Those of the survivors, and the one behind the full ones.
    step.unneeded_blocks = unneeded - request.max_blocks
    return True


def _unneeded_blocks(lives: Lives) -> int:
    """Free blocks that nobody who runs takes while the tail of a shadow job that begins now has room.

    They are counted once for each step: what is taken later in it has been counted as needed, but for blocks that
    compressions in place take instead of shared ones.
    """
    step, num_free = lives.step, lives.holdings.blocks.num_free
    if step.unneeded_blocks is None:
        step.unneeded_blocks = num_free - sum(next_blocks(request, lives.limits) for request in lives.running)
    return min(step.unneeded_blocks, num_free)
