"""Who gives way when blocks are short: those that have outgrown their budgets, run on spare blocks, or rank lower."""

from zipage.scheduling.compression import begin_stall
from zipage.scheduling.lives import Lives
from zipage.scheduling.needs import is_binding
from zipage.scheduling.request import JobKind, Request


def make_room(lives: Lives, request: Request, wanted: int) -> bool:
    """See that `wanted` blocks are free for a running request; returns whether they are.

    Where they are not, those who give way do so once no step touches them.
    """
    while (missing := wanted - lives.holdings.blocks.num_free) > 0:
        if lives.limits.compress == "pressure" and press(lives, missing):
            return False
        victim = _spare_victim(lives, request)
        if not (displace_for(lives, request) if victim is None else _give_way(lives, victim)):
            return False
    return True


def stall_in_room(lives: Lives, request: Request) -> None:
    """Begin a compression in place, which wants free blocks where the request shares some of its own."""
    while not begin_stall(request, lives.holdings):
        victim = _spare_victim(lives, request)
        if victim is None and not lives.at_work and all(other.is_quiet for other in lives.running):
            # All have outgrown their budgets by what they share, and nothing else will give a block back.
            victim = next((other for other in reversed(lives.running) if other is not request), None)
        if victim is None or not _give_way(lives, victim):
            lives.step.note_short(request)
            return


def displace_for(lives: Lives, request: Request) -> bool:
    """Preempt the last request of a lower class than one that finds no room; returns whether that is done."""
    if any(other.job is not None and other.job.kind is JobKind.SWAP_OUT for other in lives.swapped.values()):
        return False
    victim = next(reversed(lives.running), None)
    if victim is None or victim.rank[0] <= request.rank[0]:
        return False
    return _give_way(lives, victim)


def preempt_paused(lives: Lives) -> None:
    """Preempt the requests that are to give way, once no step and no job touches them."""
    for request in list(lives.running):
        if request.is_paused and request.is_quiet:
            lives.preempt(request)


def press(lives: Lives, wanted: int) -> bool:
    """Have requests that have outgrown their budgets compressed, the largest first, until `wanted` blocks come free.

    Returns:
        Whether blocks will come free.
    """
    excess = [(_excess_blocks(lives, request), request) for request in lives.running]
    coming = sum(blocks for blocks, request in excess if request.is_pressed)
    for blocks, request in sorted(excess, key=lambda item: -item[0]):
        if coming >= wanted or blocks < 1:
            break
        if not request.is_pressed:
            request.is_pressed = True
            coming += blocks
    return coming > 0


def _spare_victim(lives: Lives, request: Request) -> Request | None:
    """The last of those that run on spare blocks and are served after `request`, or, if it is guaranteed, are of its
    class."""
    for other in reversed(lives.running):
        if other.rank[0] < request.rank[0] or (other is request and not request.is_guaranteed):
            return None
        if not other.is_guaranteed and other is not request:
            return other
    return None


def _give_way(lives: Lives, victim: Request) -> bool:
    """Preempt a request now, or as soon as nothing touches it; returns whether it is done."""
    if not victim.is_quiet:
        victim.is_paused = True
        return False
    lives.preempt(victim)
    return True


def _excess_blocks(lives: Lives, request: Request) -> int:
    """Blocks that come free when the request is compressed, which it can be once its compression is due."""
    if request.resident_length < request.next_compression or is_binding(request, lives.limits):
        return 0
    if request.query_buffer < 0 or request.is_paused:
        return 0
    if request.job is not None and not request.is_pressed:
        return 0
    return len(request.block_table) - request.max_blocks
