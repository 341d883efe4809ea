"""The engine's child processes: what they inherit, how they are started and ended, and what they leave in their logs.

All children share the *lifeline* (zipage/workers/process.py says what it means), a pipe whose write end only the
supervisor has. Memory that outlives a child is in memory files: they have no name in the file system, the supervisor
keeps them open while the engine runs, and they vanish with the last process that has them open.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zipage.errors import EngineError
from zipage.workers.process import JOURNAL_VARIABLE, LIFELINE_VARIABLE, POOL_VARIABLE, SWAP_VARIABLE

# What the user has not set otherwise. Threads that spin at OpenMP's barriers for long take the cores that the thread
# they wait for needs: with one busy process on two cores, steps of the bundled model took 30 times as long as alone
# without this limit, and 4 times with it. Memory that goes back to the system after every large tensor costs a fifth
# of a step in page faults.
_CPU_ENVIRONMENT = {
    "GOMP_SPINCOUNT": "10000",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}
_EXIT_POLL_SECONDS = 0.01
_TERMINATE_SECONDS = 1.0
_REAP_SECONDS = 10.0
_LOG_TAIL_BYTES = 8192
_LOG_LINE_CHARACTERS = 500


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


class Children:
    """The child processes of one engine, by name. One thread uses it; `processes` and `starts` may be read by others.

    Attributes:
        runtime_dir: where the logs of all processes are.
        starts: how often each process has been started.
    """

    def __init__(self, runtime_dir: Path) -> None:
        self.starts: Counter[str] = Counter()
        self.runtime_dir = runtime_dir
        # The read end stays open here, so that writing never meets a pipe without readers.
        self._lifeline_read_fd, self._lifeline_write_fd = os.pipe()
        self._memory = {file: os.memfd_create(file.label) for file in _MEMORY_FILES}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        # Where the log of the process that runs now begins.
        self._log_begins: dict[str, int] = {}

    @property
    def processes(self) -> dict[str, int]:
        """Process ids by name, of all that have been started and not been killed by `kill`."""
        return {name: child.pid for name, child in self._children.copy().items()}

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a process in a session of its own, so that a terminal's Ctrl-C does not reach it.

        Its output is appended to NAME.log in the runtime directory.

        Args:
            name: of a process that does not run.
            command: its command; the runtime directory is added as its last argument.
            environment: variables beside, or instead of, those of this process.

        Raises:
            EngineError: the command cannot be run.
        """
        self.starts[name] += 1
        inherited = {file.variable: fd for file, fd in self._memory.items() if name in file.workers}
        inherited[LIFELINE_VARIABLE] = self._lifeline_read_fd
        try:
            with open(self._log_path(name), "ab") as log:
                log.write(f"---- {name} worker, start {self.starts[name]}\n".encode())
                log.flush()
                self._log_begins[name] = log.tell()
                self._children[name] = subprocess.Popen(
                    [*command, str(self.runtime_dir)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=_inherited_environment() | {key: str(fd) for key, fd in inherited.items()} | dict(environment),
                    pass_fds=list(inherited.values()),
                    start_new_session=True,
                )
        except OSError as error:
            raise EngineError(f"{name} worker could not be started: {error}") from error

    def ended(self) -> Iterator[tuple[str, int]]:
        """Names and return codes (`Popen.returncode`) of the processes that have ended; none of them is reaped.

        An ended process keeps its id, and so that of its group, until it is reaped.
        """
        for name, child in self._children.items():
            try:
                result = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                # The program ignores SIGCHLD or reaps every child itself; Popen then settles on return code 0.
                yield name, child.wait()
            else:
                if result is not None:
                    yield name, result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    def failure(self, name: str, what: str) -> EngineError:
        """The error that process `name` did `what`, in one line; a note carries the end of its log."""
        error = EngineError(" ".join(f"{name} worker {what}".split()))
        self.note_log(error, name)
        return error

    def note_log(self, error: EngineError, name: str) -> None:
        """Add the end of process `name`'s log to an error."""
        log = self._read_log(name)
        if log:
            error.add_note(f"The log of the {name} worker ends with:\n{log}")

    def describe_exit(self, name: str, status: int) -> str:
        """How process `name` ended, with the last line of its log."""
        what = f"ended with {_name_status(status)}"
        log = self._read_log(name)
        return f"{what}: {log.splitlines()[-1][:_LOG_LINE_CHARACTERS]}" if log else what

    def kill(self, names: Iterable[str]) -> None:
        """End processes by force, in this order, with all that is in their groups; those that do not run are left out.

        Raises:
            EngineError: one does not end even so.
        """
        killed = [name for name in names if name in self._children]
        for name in killed:
            self._signal(self._children[name], signal.SIGKILL)
        for name in killed:
            try:
                self._children[name].wait(_REAP_SECONDS)
            except subprocess.TimeoutExpired:
                raise self.failure(name, f"did not end within {_REAP_SECONDS:g} s of SIGKILL") from None
            del self._children[name]

    def end(self, grace: float) -> None:
        """Ask all processes to stop, end by force what is left after `grace` seconds, reap them, and free memory."""
        os.write(self._lifeline_write_fd, b"\0")
        os.close(self._lifeline_write_fd)
        self._wait(grace)
        self._signal_all(signal.SIGTERM)
        self._wait(_TERMINATE_SECONDS)
        self._signal_all(signal.SIGKILL)
        for child in self._children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_REAP_SECONDS)
        os.close(self._lifeline_read_fd)
        for fd in self._memory.values():
            os.close(fd)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while len(list(self.ended())) < len(self._children) and time.monotonic() < deadline:
            time.sleep(_EXIT_POLL_SECONDS)

    def _signal_all(self, number: signal.Signals) -> None:
        for child in self._children.values():
            self._signal(child, number)

    def _signal(self, child: subprocess.Popen[bytes], number: signal.Signals) -> None:
        """Signal the group of a process that is not reaped: what an ended one has left behind is in its group."""
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, number)

    def _log_path(self, name: str) -> Path:
        return self.runtime_dir / f"{name}.log"

    def _read_log(self, name: str) -> str:
        """The last lines that the process has written since its last start; an empty string where there are none."""
        try:
            with open(self._log_path(name), "rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_begins.get(name, 0), size - _LOG_TAIL_BYTES))
                return log.read().decode(errors="replace").strip()
        except OSError:
            return ""


def _inherited_environment() -> dict[str, str]:
    """This process's environment, but for what a child of another engine has been given there."""
    given = {file.variable for file in _MEMORY_FILES}
    return {**_CPU_ENVIRONMENT, **{key: value for key, value in os.environ.items() if key not in given}}


def _name_status(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
