"""Waiting for processes, and finding what an engine has left behind."""

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

STUBS = Path(__file__).parent / "stub_children"


def wait_until(predicate: Callable[[], object], seconds: float = 30.0) -> bool:
    """Poll until `predicate` holds; False where it still does not after `seconds`."""
    deadline = time.monotonic() + seconds
    while not predicate():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def children_of(pid: int) -> list[int]:
    """Ids of the processes that descend from `pid`, zombies included."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def running(pids: Iterable[int]) -> list[int]:
    """Those of `pids` that run; a zombie that nobody has reaped yet does not."""
    return [pid for pid in pids if _status(pid) not in (None, psutil.STATUS_ZOMBIE)]


def leftovers(directory: Path) -> list[str]:
    """Files inside `directory`, and processes with it in their command line.

    `directory` is a runtime directory, or the one in which runtime directories are made.
    """
    found = [str(path) for path in directory.glob("*")]
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if f"{directory}/" in f"{command}/":
            found.append(f"process {process.pid}: {command}")
    return found


@contextmanager
def short_temporary_directory() -> Iterator[Path]:
    """A directory whose path is short enough for sockets, which pytest's own are not on every machine."""
    with tempfile.TemporaryDirectory(prefix="z", dir="/tmp") as directory:
        yield Path(directory)


def stub_command(behaviour: str, name: str) -> list[str]:
    """Command of the stub child that behaves as tests/stub_children/stub.py says, as process `name`."""
    return [sys.executable, str(STUBS / "stub.py"), behaviour, name]


def _status(pid: int) -> str | None:
    try:
        status: str = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return None
    return status
