"""What requests hold of the engine, and how it changes hands: blocks, query buffers, rows, and host memory."""

import os
from collections.abc import Sequence

from zipage.scheduling.block_pool import BlockPool, next_hash
from zipage.scheduling.id_pool import IdPool
from zipage.scheduling.integrity import integrity_errors
from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.needs import next_compression, observation_start, peak_blocks, reusable_tokens
from zipage.scheduling.request import NEVER, HostPlace, Request


class Holdings:
    """The pools, and the only code that moves anything between them and requests.

    `reserved_blocks` is the sum over all guaranteed requests, at most the size of the pool: together they can always
    reach what they need, whatever others hold meanwhile. A query slot is the promise of one query buffer; `slots_used`
    requests have it. The buffers that are not promised are spare ones, for shadow jobs.
    """

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.blocks = BlockPool(limits.num_blocks)
        self.buffers = IdPool("query buffer", limits.num_query_buffers)
        self.rows = IdPool("row", limits.max_num_seqs)
        self.host_blocks = IdPool("host block", limits.num_host_blocks)
        self.host_slots = IdPool("host slot", limits.num_host_slots)
        self.reserved_blocks = 0
        self.slots_used = 0
        # Hashes that a client could compute would let it probe for others' prompts.
        self._salt = os.urandom(32)

    # ---- rows and what is promised ----------------------------------------------------------------------------------

    def begin_anew(self, request: Request) -> None:
        """Note what a request that holds nothing will need from its first token on."""
        request.next_compression = next_compression(request, 0, self.limits)
        request.observe_from = observation_start(request, 0, self.limits)

    def enter(self, request: Request) -> None:
        """Give a request that begins at its first token a row, and the cached blocks of its prefix."""
        (request.row,) = self.rows.take(1)
        found = self.find_prefix(request)
        self.blocks.share(found)
        request.hold_blocks(found)
        request.num_registered = len(found)
        request.position = request.resident_length = len(found) * self.limits.block_size
        request.num_pinned = min(request.position, request.prompt_length)

    def can_guarantee(self, request: Request) -> bool:
        """Whether a query slot is free, where the request needs one, and its blocks can be reserved."""
        if request.next_compression != NEVER and request.query_buffer < 0 and not self.num_free_slots:
            return False
        return self.reserved_blocks + peak_blocks(request, self.limits) <= self.limits.num_blocks

    def guarantee(self, request: Request) -> None:
        """Reserve the request's blocks, and give it a query slot where it can be compressed."""
        self.reserve_again(request)
        if request.next_compression != NEVER and request.query_buffer < 0:
            (request.query_buffer,) = self.buffers.take(1)
            self.slots_used += 1

    def reserve_again(self, request: Request) -> None:
        """Reserve what a guaranteed request needs from here on, in place of what it needed before."""
        self._reserve(request, peak_blocks(request, self.limits))

    def release_row(self, request: Request) -> int:
        """Take back the request's row, which is returned."""
        row, request.row = request.row, -1
        self.rows.give_back([row])
        return row

    def release_cache(self, request: Request) -> None:
        """Take back the request's blocks, query slot and reservation."""
        self.blocks.give_back(request.held_blocks)
        self.buffers.give_back(request.held_buffers)
        self.slots_used -= request.query_buffer >= 0
        request.block_table, request.job, request.retiring = [], None, None
        request.num_registered, request.query_buffer = 0, -1
        self._reserve(request, 0)

    # ---- query buffers ----------------------------------------------------------------------------------------------

    @property
    def num_free_slots(self) -> int:
        """Requests that can still be promised a query buffer."""
        return self.limits.num_query_slots - self.slots_used

    @property
    def num_spare_buffers(self) -> int:
        """Free query buffers beyond those that are or can be promised: as many shadow jobs may begin."""
        return self.buffers.num_free - self.num_free_slots

    def lend_buffer(self, request: Request) -> int:
        """Leave the request's query buffer, which is returned, to its shadow job; it gets a spare one in its place."""
        lent = request.query_buffer
        (request.query_buffer,) = self.buffers.take(1)
        return lent

    # ---- blocks -----------------------------------------------------------------------------------------------------

    def extend(self, request: Request, count: int) -> list[int]:
        """Append `count` free blocks to the request's table; returns them."""
        taken = self.blocks.take(count)
        request.hold_blocks(taken)
        return taken

    def missing_blocks(self, request: Request) -> int:
        """Free blocks that a waiting request takes for its known tokens, up to its first compression."""
        if request.host_place is not None:
            return len(request.host_place.blocks)
        found = self.find_prefix(request)
        wanted = self.limits.blocks_for(min(len(request.token_ids), request.next_compression))
        return wanted - sum(self.blocks.references(block) > 0 for block in found)

    def find_prefix(self, request: Request) -> list[int]:
        """Cached blocks of the first tokens of a request that holds nothing."""
        reusable = reusable_tokens(request, self.limits) // self.limits.block_size
        self._extend_hashes(request, reusable)
        return self.blocks.find(request.block_hashes[:reusable])

    def register_full_blocks(self, request: Request) -> None:
        """Put blocks that planned steps fill with known tokens into the prefix index.

        Steps run in order, and a step writes all its entries of a layer before it attends, so a request that is
        admitted later, even to the same step, may read them.
        """
        if not self.limits.prefix_caching or request.is_compressed or request.job is not None:
            return
        full = min(request.position, len(request.token_ids)) // self.limits.block_size
        self._extend_hashes(request, full)
        for index in range(request.num_registered, full):
            self.blocks.register(request.block_table[index], request.block_hashes[index])
        request.num_registered = max(request.num_registered, full)

    # ---- host memory ------------------------------------------------------------------------------------------------

    def take_host_place(self, request: Request) -> bool:
        """Find room in host memory for all blocks of the request; returns whether there was enough."""
        count = len(request.block_table)
        if self.host_blocks.num_free < count or not self.host_slots.num_free:
            return False
        (slot,) = self.host_slots.take(1)
        request.host_place = HostPlace(self.host_blocks.take(count), slot)
        return True

    def release_host_place(self, request: Request) -> None:
        """Take back the request's host memory, where it has any."""
        if request.host_place is not None:
            self.host_blocks.give_back(request.host_place.blocks)
            self.host_slots.give_back([request.host_place.slot])
            request.host_place = None

    # ---- checks -----------------------------------------------------------------------------------------------------

    def integrity_errors(self, holders: Sequence[Request]) -> list[str]:
        """What is wrong with the ownership of blocks, buffers, rows and host memory; empty for a sound engine."""
        errors = integrity_errors(holders, self, self.limits)
        reserved = sum(request.reserved_blocks for request in holders)
        if not reserved == self.reserved_blocks <= self.limits.num_blocks:
            errors.append(f"{reserved} of {self.limits.num_blocks} blocks are reserved, not {self.reserved_blocks}")
        slots = sum(request.query_buffer >= 0 for request in holders)
        if not slots == self.slots_used <= self.limits.num_query_slots:
            errors.append(f"{slots} of {self.limits.num_query_slots} query slots are used, not {self.slots_used}")
        if self.num_spare_buffers < 0:
            errors.append(f"{-self.num_spare_buffers} query buffers that are promised are lent")
        return errors

    def _reserve(self, request: Request, count: int) -> None:
        self.reserved_blocks += count - request.reserved_blocks
        request.reserved_blocks = count

    def _extend_hashes(self, request: Request, count: int) -> None:
        hashes, size = request.block_hashes, self.limits.block_size
        while len(hashes) < count:
            start = len(hashes) * size
            previous = hashes[-1] if hashes else self._salt
            hashes.append(next_hash(previous, request.token_ids[start : start + size]))
