"""What an engine's processes write: a log for each name, to which every process of that name appends."""

import os
from pathlib import Path
from typing import BinaryIO

from zipage.workers.spare import log_path, waiting_log_path

_TAIL_BYTES = 8192


class ChildLogs:
    """The logs of an engine's processes, in its runtime directory.

    A spare writes to a file of its own until it is told to go, so that its words are not taken for those of the process
    that runs meanwhile.
    """

    def __init__(self, runtime_dir: Path) -> None:
        self._runtime_dir = runtime_dir
        # Where the log of the process that runs now begins.
        self._begins: dict[str, int] = {}
        # Processes that were spares, as long as what they wrote while they waited is there.
        self._from_spare: set[str] = set()

    def begin(self, name: str, number: int) -> BinaryIO:
        """Open the log for a process that begins now, the `number`-th of its name; the caller closes it."""
        log = open(log_path(self._runtime_dir, name), "ab")  # noqa: SIM115
        log.write(f"---- {name} worker, start {number}\n".encode())
        log.flush()
        self._begins[name] = log.tell()
        self._from_spare.discard(name)
        return log

    def begin_waiting(self, name: str) -> BinaryIO:
        """Open the log of a spare, whose predecessor does not write there any more; the caller closes it."""
        self._from_spare.discard(name)
        return open(waiting_log_path(self._runtime_dir, name), "wb")

    def take_over(self, name: str) -> None:
        """Note that the process which has just begun is the spare, and what the spare has written is its own."""
        self._from_spare.add(name)

    def read(self, name: str) -> str:
        """The last lines that the process has written since its start; an empty string where there are none."""
        parts = [self.read_waiting(name)] if name in self._from_spare else []
        parts.append(_tail(log_path(self._runtime_dir, name), self._begins.get(name, 0)))
        return "\n".join(filter(None, parts))

    def read_waiting(self, name: str) -> str:
        """The last lines that the spare has written before it was told to go."""
        return _tail(waiting_log_path(self._runtime_dir, name), 0)


def _tail(path: Path, begin: int) -> str:
    try:
        with open(path, "rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(begin, size - _TAIL_BYTES))
            return log.read().decode(errors="replace").strip()
    except OSError:
        return ""
