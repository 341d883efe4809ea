"""A pool of small integers with one owner each: query buffers, and rows of the decode worker."""

from collections.abc import Iterable


class IdPool:
    """Hands out the ids `0 .. size - 1`; an id is free or has exactly one owner.

    Ids come out in the order in which they came back, the longest-free one first, so that a stale use of a freed id
    stays visible for as long as possible.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._free = dict.fromkeys(range(size))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.size - len(self._free)

    def is_free(self, number: int) -> bool:
        return number in self._free

    def take(self, count: int) -> list[int]:
        """Take `count` ids.

        Raises:
            ValueError: fewer are free; nothing is taken then.
        """
        if count > len(self._free):
            raise ValueError(f"{count} {self.name}s wanted, {len(self._free)} free")
        taken = [number for number, _ in zip(self._free, range(count), strict=False)]
        for number in taken:
            del self._free[number]
        return taken

    def give_back(self, numbers: Iterable[int]) -> None:
        """Return ids to the pool.

        Raises:
            ValueError: an id is not of this pool or is free already.
        """
        for number in numbers:
            if not 0 <= number < self.size or number in self._free:
                raise ValueError(f"{self.name} {number} given back, which nobody holds")
            self._free[number] = None
