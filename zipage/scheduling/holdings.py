"""What requests hold of the engine, and how it changes hands: KV blocks, query slots, rows of the decode worker."""

import os
from collections.abc import Sequence

from zipage.messages import Admission
from zipage.scheduling.block_pool import BlockPool, next_hash
from zipage.scheduling.id_pool import IdPool
from zipage.scheduling.integrity import integrity_errors
from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.request import Request


class Holdings:
    """The pools, and the only code that moves anything between them and requests."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.blocks = BlockPool(limits.num_blocks)
        self.slots = IdPool("query slot", limits.num_query_slots)
        self.rows = IdPool("row", limits.max_num_seqs)
        # Hashes that a client could compute would let it probe for others' prompts.
        self._salt = os.urandom(32)

    def can_admit(self, request: Request, holders: Sequence[Request]) -> bool:
        """Whether a waiting request may hold what it needs, beside all requests that hold something already.

        Under a budget everyone's blocks up to the next compression are counted as taken, so that no request that runs
        can lack one for good. Without a budget there must be room for the request's known tokens, and for one more
        block of everyone who runs, so that what is admitted is not preempted at once.
        """
        limits = self.limits
        if not self.rows.num_free:
            return False
        if not limits.max_blocks_per_request:
            found = self._find_prefix(request)
            missing = limits.blocks_for(len(request.token_ids)) - len(found)
            free = self.blocks.num_free - sum(not self.blocks.references(block) for block in found)
            return free >= missing + len(holders)
        if limits.can_compress(request) and not self.slots.num_free:
            return False
        reserved = sum(self._reserved_blocks(other) for other in holders)
        return reserved + self._reserved_blocks(request) <= limits.num_blocks

    def admit(self, request: Request) -> Admission:
        """Give the request a row, a query slot where it can be compressed, and the cached blocks of its prefix."""
        (request.row,) = self.rows.take(1)
        if self.limits.can_compress(request):
            (request.query_slot,) = self.slots.take(1)
        found = self._find_prefix(request)
        self.blocks.share(found)
        request.hold_blocks(found)
        request.num_registered = len(found)
        request.position = request.resident_length = len(found) * self.limits.block_size
        return Admission(
            row=request.row,
            token_ids=list(request.token_ids),
            prompt_length=request.prompt_length,
            params=request.params,
            eos_token_ids=request.eos_token_ids,
            query_slot=request.query_slot,
            block_table=found,
            position=request.position,
        )

    def extend(self, request: Request, count: int) -> list[int]:
        """Append `count` free blocks to the request's table; returns them."""
        taken = self.blocks.take(count)
        request.hold_blocks(taken)
        return taken

    def register_full_blocks(self, request: Request) -> None:
        """Put blocks that planned steps fill with known tokens into the prefix index.

        Steps run in order, and a step writes all its entries of a layer before it attends, so a request that is
        admitted later, even to the same step, may read them.
        """
        if not self.limits.prefix_caching or request.compressions or request.job_in_flight:
            return
        full = min(request.position, len(request.token_ids)) // self.limits.block_size
        self._extend_hashes(request, full)
        for index in range(request.num_registered, full):
            self.blocks.register(request.block_table[index], request.block_hashes[index])
        request.num_registered = max(request.num_registered, full)

    def prepare_compression(self, request: Request) -> bool:
        """Choose the `N_max` blocks that the request holds after its compression.

        They are the first ones of its table, but for those that others hold too, in place of which it takes free ones:
        a shared block is never written. Blocks that will be written leave the index.

        Returns:
            Whether that was possible; where free blocks are missing, another job's end will bring them.
        """
        head = request.block_table[: request.max_blocks]
        # Not always the first ones: of two requests that compute the same tokens side by side, the index has some
        # blocks of the one and some of the other.
        shared = [block for block in head if self.blocks.references(block) > 1]
        if self.blocks.num_free < len(shared):
            return False
        self.blocks.forget(block for block in request.block_table if self.blocks.references(block) == 1)
        fresh = dict(zip(shared, self.blocks.take(len(shared)), strict=True))
        request.next_table = [fresh.get(block, block) for block in head]
        return True

    def adopt_next_table(self, request: Request) -> None:
        """Replace the request's table by the one that `prepare_compression` chose, and free the rest."""
        kept = set(request.next_table)
        self.blocks.give_back([block for block in request.block_table if block not in kept])
        request.block_table, request.next_table = request.next_table, []

    def release(self, request: Request) -> int:
        """Take back everything; returns the row that is free again."""
        self.blocks.give_back(request.held_blocks)
        request.block_table, request.next_table = [], []
        if request.query_slot >= 0:
            self.slots.give_back([request.query_slot])
            request.query_slot = -1
        row = request.row
        self.rows.give_back([row])
        request.row = -1
        return row

    def integrity_errors(self, holders: Sequence[Request]) -> list[str]:
        """What is wrong with the ownership of blocks, slots and rows; empty for a sound engine."""
        return integrity_errors(holders, self.blocks, self.slots, self.rows, self.limits)

    def _reserved_blocks(self, request: Request) -> int:
        """Most blocks that the request may hold from here on, or that are counted so."""
        if request.is_ended:
            return len(request.held_blocks)
        if request.compressions:
            return request.max_blocks
        return self.limits.first_peak(request)

    def _find_prefix(self, request: Request) -> list[int]:
        """Cached blocks of the request's first tokens; the last token, which gives logits, is always computed."""
        reusable = self.limits.reusable_tokens(request) // self.limits.block_size
        self._extend_hashes(request, reusable)
        return self.blocks.find(request.block_hashes[:reusable])

    def _extend_hashes(self, request: Request, count: int) -> None:
        hashes, size = request.block_hashes, self.limits.block_size
        while len(hashes) < count:
            start = len(hashes) * size
            previous = hashes[-1] if hashes else self._salt
            hashes.append(next_hash(previous, request.token_ids[start : start + size]))
