"""Which requests' entries may have been lost when the compression worker was killed.

A compaction in place destroys its source, so a job that was killed there cannot be done again. The worker notes its
request before, in a memory file that outlives it, and its successor reports what it finds.

A note stays after the job is done, because an answer that has been handed to the socket may not have left when the
process is killed. It goes when the request's next job comes, which the scheduler sends only after the answer to the
last one, or in favour of newer notes.
"""

import mmap
import os
import struct
from collections.abc import Iterable

CAPACITY = 510

# The number of the list that holds, then two lists: a count and uids, 64 bits each.
_NUMBER = struct.Struct("<Q")
_LIST_BYTES = (1 + CAPACITY) * _NUMBER.size
_TOTAL_BYTES = _NUMBER.size + 2 * _LIST_BYTES


class Journal:
    """The notes, one writer at a time; they survive a SIGKILL at any moment, not the machine.

    Attributes:
        has_predecessor: another worker had the file before this one.
    """

    def __init__(self, descriptor: int | None) -> None:
        """Take over the notes of the worker before.

        Args:
            descriptor: of a memory file, of size 0 at first; None keeps the notes in this process.
        """
        if descriptor is None:
            descriptor = os.memfd_create("journal")
        self.has_predecessor = os.fstat(descriptor).st_size > 0
        os.ftruncate(descriptor, _TOTAL_BYTES)
        self._page = mmap.mmap(descriptor, _TOTAL_BYTES)
        # In order of time; a dict because they are looked up for every job.
        self._uids = dict.fromkeys(self._read())

    @property
    def uids(self) -> list[int]:
        """The requests noted, oldest first."""
        return list(self._uids)

    def note(self, uids: Iterable[int]) -> None:
        """Note requests, at most `CAPACITY`, before anything of theirs is overwritten."""
        for uid in uids:
            self._uids.pop(uid, None)
            self._uids[uid] = None
        self._uids = dict.fromkeys(list(self._uids)[-CAPACITY:])
        self._write()

    def forget(self, uid: int) -> None:
        """Take back the note of a request whose last answer the scheduler has."""
        if uid in self._uids:
            del self._uids[uid]
            self._write()

    def _read(self) -> list[int]:
        start = _list_start(self._current())
        (count,) = _NUMBER.unpack_from(self._page, start)
        return list(struct.unpack_from(f"<{count}Q", self._page, start + _NUMBER.size))

    def _write(self) -> None:
        """Write the list that does not hold, then say in one word that it does: a kill in between changes nothing."""
        other = 1 - self._current()
        struct.pack_into(f"<{1 + len(self._uids)}Q", self._page, _list_start(other), len(self._uids), *self._uids)
        _NUMBER.pack_into(self._page, 0, other)

    def _current(self) -> int:
        number: int = _NUMBER.unpack_from(self._page, 0)[0]
        return number


def _list_start(number: int) -> int:
    return _NUMBER.size + number * _LIST_BYTES
