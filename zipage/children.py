"""The engine's child processes, by name: how they are started and ended, and what they leave in their logs."""

import signal
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from zipage.child_logs import ChildLogs
from zipage.child_process import REAP_SECONDS, ChildProcess, Launcher, describe_end, exit_status, reap, signal_group
from zipage.errors import EngineError
from zipage.spares import Spares

_EXIT_POLL_SECONDS = 0.01
_TERMINATE_SECONDS = 1.0


class Children:
    """The child processes of one engine, by name. One thread uses it; `processes` and `starts` may be read by others.

    Attributes:
        runtime_dir: where the logs of all processes are.
        starts: how often each process has been started.
        spares: processes that wait to be one of these.
    """

    def __init__(self, runtime_dir: Path, with_spares: Collection[str]) -> None:
        """Args: runtime_dir: as above; with_spares: names of the processes that get a spare."""
        self.starts: Counter[str] = Counter()
        self.runtime_dir = runtime_dir
        self._launcher = Launcher(runtime_dir)
        self._logs = ChildLogs(runtime_dir)
        self.spares = Spares(with_spares, self._launcher, self._logs)
        self._children: dict[str, ChildProcess] = {}

    @property
    def processes(self) -> dict[str, int]:
        """Process ids by name, of all that have been started and not been killed by `kill`."""
        return {name: child.pid for name, child in self._children.copy().items()}

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a process; where it has a spare, which has its command and environment, that is told to go.

        Its output is appended to NAME.log in the runtime directory.

        Args:
            name: of a process that does not run.
            command: its command; the runtime directory is added as its last argument.
            environment: variables beside, or instead of, those of this process.

        Raises:
            EngineError: the command cannot be run.
        """
        self.starts[name] += 1
        try:
            with self._logs.begin(name, self.starts[name]) as log:
                spare = self.spares.take(name)
                self._children[name] = spare or self._launcher.launch(name, command, environment, log)
        except OSError as error:
            raise EngineError(f"{name} worker could not be started: {error}") from error

    def ended(self) -> Iterator[tuple[str, int]]:
        """Names and return codes (`Popen.returncode`) of the processes that have ended; none of them is reaped."""
        for name, child in self._children.items():
            status = exit_status(child)
            if status is not None:
                yield name, status

    def failure(self, name: str, what: str) -> EngineError:
        """The error that process `name` did `what`, in one line; a note carries the end of its log."""
        error = EngineError(" ".join(f"{name} worker {what}".split()))
        self.note_log(error, name)
        return error

    def note_log(self, error: EngineError, name: str) -> None:
        """Add the end of process `name`'s log to an error."""
        log = self._logs.read(name)
        if log:
            error.add_note(f"The log of the {name} worker ends with:\n{log}")

    def describe_exit(self, name: str, status: int) -> str:
        """How process `name` ended, with the last line of its log."""
        return describe_end(status, self._logs.read(name))

    def kill(self, names: Iterable[str]) -> None:
        """End processes by force, in this order, with all that is in their groups; those that do not run are left out.

        Raises:
            EngineError: one does not end even so.
        """
        killed = [name for name in names if name in self._children]
        for name in killed:
            signal_group(self._children[name], signal.SIGKILL)
        for name in killed:
            try:
                self._children[name].wait(REAP_SECONDS)
            except subprocess.TimeoutExpired:
                raise self.failure(name, f"did not end within {REAP_SECONDS:g} s of SIGKILL") from None
            del self._children[name]

    def end(self, grace: float) -> None:
        """Ask all processes to stop, end by force what is left after `grace` seconds, reap them, and free memory."""
        self.spares.kill()
        self._launcher.ask_to_stop()
        self._wait(grace)
        self._signal_all(signal.SIGTERM)
        self._wait(_TERMINATE_SECONDS)
        self._signal_all(signal.SIGKILL)
        for child in self._children.values():
            reap(child)
        self._launcher.close()

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while len(list(self.ended())) < len(self._children) and time.monotonic() < deadline:
            time.sleep(_EXIT_POLL_SECONDS)

    def _signal_all(self, number: signal.Signals) -> None:
        for child in self._children.values():
            signal_group(child, number)
