"""CPU time and memory of an engine's processes, from /proc."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from zipage.workers.spare import waiting_log_path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_WORKER_PREFIX = "zipage.workers."
# Fields of /proc/PID/stat behind the name, which may hold spaces and parentheses.
_USER_TICKS, _SYSTEM_TICKS = 11, 12


@dataclass(frozen=True)
class ProcessUsage:
    """One process at one time.

    Attributes:
        name: `tokenizer`, `scheduler`, `decode` or `compression`; `spare compression` is one that waits to be that.
        cpu_seconds: since it started, of all its threads.
        resident_bytes: memory, with what it shares with others.
    """

    name: str
    pid: int
    cpu_seconds: float
    resident_bytes: int


def engine_processes(address: str, proc: Path = Path("/proc")) -> list[ProcessUsage]:
    """The workers of the engine at an address, whose command lines name its runtime directory, by process id.

    Empty where they are not on this machine, or not visible to this user.

    Args:
        address: `ipc://RUNTIME_DIR/clients`.
        proc: where the system describes its processes.
    """
    runtime_dir = str(Path(address.removeprefix("ipc://")).parent)
    found = []
    for directory in proc.glob("[0-9]*"):
        try:
            arguments = (directory / "cmdline").read_text(errors="replace").split("\0")
            modules = [text for text in arguments if text.startswith(_WORKER_PREFIX)]
            if modules and runtime_dir in arguments:
                name = modules[0].removeprefix(_WORKER_PREFIX)
                found.append(_read(directory, f"spare {name}" if _is_spare(directory, name) else name))
        except OSError:
            # It has ended meanwhile, or is another user's.
            continue
    return sorted(found, key=lambda process: process.pid)


def _is_spare(directory: Path, name: str) -> bool:
    """Whether a worker's program waits to be told to go: until then it does not write to the worker's log."""
    with contextlib.suppress(OSError):
        return (directory / "fd/1").readlink().name == waiting_log_path(Path(), name).name
    return False


def _read(directory: Path, name: str) -> ProcessUsage:
    fields = (directory / "stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])
    pages = int((directory / "statm").read_text().split()[1])
    return ProcessUsage(name, int(directory.name), ticks / _TICKS_PER_SECOND, pages * _PAGE_BYTES)
