"""The check that all blocks, slots and rows have the owners that they say, and that tables agree with requests."""

from collections import Counter
from collections.abc import Iterable, Sequence

from zipage.scheduling.block_pool import BlockPool
from zipage.scheduling.id_pool import IdPool
from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.request import Request


def integrity_errors(
    holders: Sequence[Request], blocks: BlockPool, slots: IdPool, rows: IdPool, limits: SchedulerLimits
) -> list[str]:
    """Compare what requests hold with what the pools have given out; an empty list is a sound engine."""
    errors = _block_errors(blocks, Counter(block for request in holders for block in request.held_blocks))
    errors += _ownership_errors(slots, (request.query_slot for request in holders if request.query_slot >= 0))
    errors += _ownership_errors(rows, (request.row for request in holders if request.row >= 0))
    for request in holders:
        held, entries = len(request.block_table), request.resident_length
        if limits.blocks_for(entries) > held:
            errors.append(f"request {request.uid} has {entries} entries in {held} blocks")
        if entries > request.position or request.num_survivors > entries:
            errors.append(
                f"request {request.uid}: {request.num_survivors} survivors, {entries} entries, "
                f"position {request.position}"
            )
    return errors


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
