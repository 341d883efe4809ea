"""The check that everything has the owners that it says it has, and that tables agree with requests."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from zipage.scheduling.block_pool import BlockPool
from zipage.scheduling.id_pool import IdPool
from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.request import NEVER, Request


class Pools(Protocol):
    """The pools whose ownership is checked."""

    blocks: BlockPool
    buffers: IdPool
    rows: IdPool
    host_blocks: IdPool
    host_slots: IdPool


def integrity_errors(holders: Sequence[Request], pools: Pools, limits: SchedulerLimits) -> list[str]:
    """Compare what requests hold with what the pools have given out; an empty list is a sound engine."""
    places = [request.host_place for request in holders if request.host_place is not None]
    errors = _block_errors(pools.blocks, Counter(block for request in holders for block in request.held_blocks))
    errors += _ownership_errors(pools.buffers, (buffer for request in holders for buffer in request.held_buffers))
    errors += _ownership_errors(pools.rows, (request.row for request in holders if request.row >= 0))
    errors += _ownership_errors(pools.host_blocks, (block for place in places for block in place.blocks))
    errors += _ownership_errors(pools.host_slots, (place.slot for place in places))
    for request in holders:
        errors += _request_errors(request, limits)
    return errors


def _request_errors(request: Request, limits: SchedulerLimits) -> Iterator[str]:
    held, entries = len(request.block_table), request.resident_length
    # While it is swapped, its entries are in host memory.
    if limits.blocks_for(entries) > held and request.host_place is None:
        yield f"request {request.uid} has {entries} entries in {held} blocks"
    if entries > request.position or request.num_survivors > entries:
        yield (
            f"request {request.uid}: {request.num_survivors} survivors, {entries} entries, position {request.position}"
        )
    if request.is_guaranteed and request.query_buffer < 0 and request.next_compression != NEVER:
        yield f"request {request.uid} is guaranteed and has no query slot"


def _block_errors(pool: BlockPool, holders: Counter[int]) -> list[str]:
    errors = [
        f"block {block} has {count} holders and {pool.references(block)} references"
        for block, count in holders.items()
        if count != pool.references(block)
    ]
    if pool.num_used != len(holders):
        errors.append(f"{len(holders)} blocks have holders, and {pool.num_used} are not free")
    return errors


def _ownership_errors(pool: IdPool, held: Iterable[int]) -> list[str]:
    owners = Counter(held)
    errors = [f"{pool.name} {number} has {count} owners" for number, count in owners.items() if count > 1]
    errors += [f"{pool.name} {number} is held and free" for number in owners if pool.is_free(number)]
    if pool.num_used > len(owners):
        errors.append(f"{pool.num_used - len(owners)} {pool.name}s have no owner")
    return errors
