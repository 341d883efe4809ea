"""One child process: what it inherits, how it is launched, and how its end is seen and brought about.

All children of an engine share the *lifeline* (zipage/workers/process.py says what it means), a pipe whose write end
only the supervisor has. Memory that outlives a child is in memory files: they have no name in the file system, the
supervisor keeps them open while the engine runs, and they vanish with the last process that has them open.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from zipage.workers.process import JOURNAL_VARIABLE, LIFELINE_VARIABLE, POOL_VARIABLE, SWAP_VARIABLE
from zipage.workers.spare import GO_VARIABLE

ChildProcess = subprocess.Popen[bytes]

# What the user has not set otherwise. Threads that spin at OpenMP's barriers for long take the cores that the thread
# they wait for needs: with one busy process on two cores, steps of the bundled model took 30 times as long as alone
# without this limit, and 4 times with it. Memory that goes back to the system after every large tensor costs a fifth
# of a step in page faults.
_CPU_ENVIRONMENT = {
    "GOMP_SPINCOUNT": "10000",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}
_LOG_LINE_CHARACTERS = 500
REAP_SECONDS = 10.0


@dataclass(frozen=True)
class _MemoryFile:
    """A memory file of size 0, which the `workers` find as a descriptor in the environment `variable`."""

    label: str
    variable: str
    workers: tuple[str, ...]


_MEMORY_FILES = (
    _MemoryFile("zipage-kv", POOL_VARIABLE, ("decode", "compression")),
    _MemoryFile("zipage-swap", SWAP_VARIABLE, ("compression",)),
    _MemoryFile("zipage-journal", JOURNAL_VARIABLE, ("compression",)),
)


class Launcher:
    """Launches the children of one engine; owns what they inherit."""

    def __init__(self, runtime_dir: Path) -> None:
        self._runtime_dir = runtime_dir
        # The read end stays open here, so that writing never meets a pipe without readers.
        self._lifeline_read_fd, self._lifeline_write_fd = os.pipe()
        self._memory = {file: os.memfd_create(file.label) for file in _MEMORY_FILES}

    def launch(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: BinaryIO,
        go_fd: int | None = None,
    ) -> ChildProcess:
        """Launch a process in a session of its own, so that a terminal's Ctrl-C does not reach it.

        Args:
            name: what it is, which says what it inherits.
            command: its command; the runtime directory is added as its last argument.
            environment: variables beside, or instead of, those of this process.
            log: where its output goes.
            go_fd: makes it a spare, which waits until this descriptor is readable.

        Raises:
            OSError: the command cannot be run.
        """
        inherited = {file.variable: fd for file, fd in self._memory.items() if name in file.workers}
        inherited[LIFELINE_VARIABLE] = self._lifeline_read_fd
        if go_fd is not None:
            inherited[GO_VARIABLE] = go_fd
        return subprocess.Popen(
            [*command, str(self._runtime_dir)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_inherited_environment() | {key: str(fd) for key, fd in inherited.items()} | dict(environment),
            pass_fds=list(inherited.values()),
            start_new_session=True,
        )

    def ask_to_stop(self) -> None:
        """Ask all that have been launched to stop; nothing is launched after that."""
        os.write(self._lifeline_write_fd, b"\0")
        os.close(self._lifeline_write_fd)

    def close(self) -> None:
        """Free memory, once all have been asked to stop and have ended."""
        os.close(self._lifeline_read_fd)
        for fd in self._memory.values():
            os.close(fd)


def exit_status(child: ChildProcess) -> int | None:
    """The return code (`Popen.returncode`) of a process that has ended, which is not reaped; None where it runs.

    An ended process keeps its id, and so that of its group, until it is reaped.
    """
    try:
        result = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        # The program ignores SIGCHLD or reaps every child itself; Popen then settles on return code 0.
        return child.wait()
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def signal_group(child: ChildProcess, number: signal.Signals) -> None:
    """Signal the group of a process that is not reaped: what an ended one has left behind is in its group."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)


def reap(child: ChildProcess) -> None:
    """Reap a process that has been ended; one that does not end even so is left."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(REAP_SECONDS)


def describe_end(status: int, log: str) -> str:
    """How a process with this return code ended, with the last line of what it wrote."""
    what = f"ended with {_name_status(status)}"
    return f"{what}: {log.splitlines()[-1][:_LOG_LINE_CHARACTERS]}" if log else what


def _inherited_environment() -> dict[str, str]:
    """This process's environment, but for what a child of another engine has been given there."""
    given = {GO_VARIABLE, *(file.variable for file in _MEMORY_FILES)}
    return {**_CPU_ENVIRONMENT, **{key: value for key, value in os.environ.items() if key not in given}}


def _name_status(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
