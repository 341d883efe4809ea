"""KV blocks: who holds them, and the index by which requests with equal prefixes share them.

A block is *held* by one or more requests, or it is free. A full block whose entries are the KV of known tokens may be
in the index, under the chained hash of all tokens up to its end; a free block in the index keeps its entries until its
memory is wanted, the least recently used first.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """Blocks `0 .. size - 1`, counted references, and the prefix index."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.peak = 0
        self._references = [0] * size
        # Free blocks without and with a place in the index, both in the order in which they are taken.
        self._empty = OrderedDict.fromkeys(range(size))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return len(self._empty) + len(self._cached)

    @property
    def num_used(self) -> int:
        return self.size - self.num_free

    def references(self, block: int) -> int:
        """How many requests hold the block."""
        return self._references[block]

    def take(self, count: int) -> list[int]:
        """Take `count` free blocks; cached ones, which then leave the index, only when no other is left.

        Raises:
            ValueError: fewer are free; nothing is taken then.
        """
        if count > self.num_free:
            raise ValueError(f"{count} blocks wanted, {self.num_free} free")
        taken = [self._empty.popitem(last=False)[0] if self._empty else self._evict() for _ in range(count)]
        for block in taken:
            self._references[block] = 1
        self.peak = max(self.peak, self.num_used)
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Hold blocks that the index has found."""
        for block in blocks:
            if not self._references[block]:
                del self._cached[block]
            self._references[block] += 1
        self.peak = max(self.peak, self.num_used)

    def give_back(self, blocks: Sequence[int]) -> None:
        """Let go of blocks, given in the order of their entries; those that nobody holds any more are free.

        Raises:
            ValueError: a block is not held.
        """
        # The end of a prefix is of use to fewer requests than its beginning, so it is the first to go.
        for block in reversed(blocks):
            if self._references[block] < 1:
                raise ValueError(f"block {block} given back, which nobody holds")
            self._references[block] -= 1
            if not self._references[block]:
                (self._cached if block in self._hash_of else self._empty)[block] = None

    def register(self, block: int, prefix_hash: bytes) -> None:
        """Put a held, full block into the index, unless another block has the same entries already."""
        if prefix_hash not in self._block_of and block not in self._hash_of:
            self._block_of[prefix_hash] = block
            self._hash_of[block] = prefix_hash

    def forget(self, blocks: Iterable[int]) -> None:
        """Take held blocks out of the index, because their entries are about to change."""
        for block in blocks:
            prefix_hash = self._hash_of.pop(block, None)
            if prefix_hash is not None:
                del self._block_of[prefix_hash]

    def find(self, prefix_hashes: Iterable[bytes]) -> list[int]:
        """Blocks of the longest run of hashes, from the first on, that the index has."""
        found = []
        for prefix_hash in prefix_hashes:
            block = self._block_of.get(prefix_hash)
            if block is None:
                break
            found.append(block)
        return found

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        self.forget([block])
        return block


def next_hash(previous: bytes, token_ids: Sequence[int]) -> bytes:
    """The SHA-256 of a block of `token_ids` chained to that of the block before it, or to a salt at the first block."""
    return hashlib.sha256(previous + array("I", token_ids).tobytes()).digest()
