"""Who may run: waiting requests, and which of those that run are guaranteed what they need."""

from zipage.scheduling.lives import Lives
from zipage.scheduling.needs import allowed_tokens
from zipage.scheduling.request import NEVER, Request, RequestState
from zipage.scheduling.room import displace_for, press


def guarantee_running(lives: Lives) -> bool:
    """Guarantee what requests on spare blocks need, in order.

    Returns:
        Whether a request that is admitted may be guaranteed too. One that has no use for a query slot lets others pass
        until it has been preempted, because its reservation may be as large as the pool.
    """
    for request in list(lives.running):
        if request.is_guaranteed or request.is_paused or request.state is RequestState.WAITING:
            continue
        while not (can_guarantee := lives.holdings.can_guarantee(request)):
            if allowed_tokens(request, lives.limits) or not displace_for(lives, request):
                break
        if can_guarantee:
            lives.guarantee(request)
        elif request.next_compression != NEVER or request.preemptions:
            return False
    return True


def admit_next(lives: Lives, is_line_open: bool) -> Request | None:
    """Admit the first of the queue, where it finds room; nobody is admitted to blocks that others lack.

    Args:
        lives: the requests.
        is_line_open: it may be guaranteed.

    Returns:
        The request, which may be on its way back from host memory; None where it has to wait.
    """
    while (request := lives.waiting.first) is not None and lives.step.lets_in(request):
        is_guaranteed = is_line_open and lives.holdings.can_guarantee(request)
        if _has_room(lives, request, is_guaranteed):
            if request.host_place is not None:
                lives.bring_back(request)
                return request
            lives.admit(request)
            if is_guaranteed:
                lives.guarantee(request)
            return request
        if not displace_for(lives, request):
            break
    return None


def _has_room(lives: Lives, request: Request, is_guaranteed: bool) -> bool:
    """Whether a waiting request finds a row, and its blocks without anyone having to give way.

    On spare blocks it also leaves one for everyone who runs, so that it is not preempted at once, and those that shadow
    compressions may take; and one that can be compressed must be expected to get its query slot in time. The others
    might have to wait for the whole pool.
    """
    if not lives.holdings.rows.num_free:
        return False
    wanted = lives.holdings.missing_blocks(request)
    if not is_guaranteed:
        if request.host_place is not None or not _may_use_spare_blocks(lives, request):
            return False
        wanted += len(lives.running) + lives.limits.max_shadow_blocks
    missing = wanted - lives.holdings.blocks.num_free
    if missing > 0 and lives.limits.compress == "pressure":
        press(lives, missing)
    if missing > 0 or is_guaranteed or request.next_compression == NEVER:
        return missing <= 0
    return lives.foresight.can_stay(request, lives.running, lives.counters.steps)


def _may_use_spare_blocks(lives: Lives, request: Request) -> bool:
    if not lives.limits.num_query_slots:
        return True
    return lives.limits.hybrid_scheduling and allowed_tokens(request, lives.limits) > 0
