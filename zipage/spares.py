"""Spares: processes that are started in advance, to take the place of one that has ended without its long imports."""

import logging
import os
import signal
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from zipage.child_logs import ChildLogs
from zipage.child_process import ChildProcess, Launcher, describe_end, exit_status, reap, signal_group
from zipage.config import EngineConfig

_log = logging.getLogger("zipage")


def choose_spares(config: EngineConfig, *, gpu: bool) -> frozenset[str]:
    """Names of the processes that get a spare, where there is a `gpu` that the engine can use.

    Requests with a budget wait for the next compression worker, which would import for most of that time. A CPU engine
    imports less, and has less memory to spare. Without a budget there is nothing to compress. A decode worker loads its
    model for longer than it imports.
    """
    return frozenset({"compression"} if gpu and config.device != "cpu" and config.kv_budget else ())


@dataclass(frozen=True)
class _Spare:
    """A spare and the descriptor that tells it to go."""

    process: ChildProcess
    go_fd: int


class Spares:
    """The spares of one engine: at most one for each of some `names`, of processes that it can be.

    One thread uses it; `processes` may be read by others.
    """

    def __init__(self, names: Collection[str], launcher: Launcher, logs: ChildLogs) -> None:
        self._names = names
        self._launcher = launcher
        self._logs = logs
        self._spares: dict[str, _Spare] = {}

    @property
    def processes(self) -> dict[str, int]:
        """Ids of the spares, by name."""
        return {name: spare.process.pid for name, spare in self._spares.copy().items()}

    @property
    def missing(self) -> list[str]:
        """Names of the processes that get a spare and have none."""
        return [name for name in self._names if name not in self._spares]

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the spare that is `missing` of a process, with the command and environment that the process would have.

        Where that is impossible there is a line in the log; the process itself can do without.
        """
        try:
            go_fd = os.eventfd(0)
            try:
                with self._logs.begin_waiting(name) as log:
                    process = self._launcher.launch(name, command, environment, log, go_fd)
            except OSError:
                os.close(go_fd)
                raise
        except OSError as error:
            _log.warning("spare %s worker could not be started: %s", name, error)
        else:
            self._spares[name] = _Spare(process, go_fd)

    def take(self, name: str) -> ChildProcess | None:
        """Tell the spare of a process to go, and give it away; None where there is none that runs."""
        spare = self._spares.get(name)
        if spare is None or exit_status(spare.process) is not None:
            return None
        self._logs.take_over(name)
        os.eventfd_write(spare.go_fd, 1)
        self._forget(name)
        return spare.process

    def drop_ended(self) -> None:
        """Forget the spares that have ended by themselves, each with a line in the log."""
        for name, spare in list(self._spares.items()):
            status = exit_status(spare.process)
            if status is not None:
                self._kill(name)
                _log.warning("spare %s worker %s", name, describe_end(status, self._logs.read_waiting(name)))

    def kill(self) -> None:
        """End all of them by force; they have nothing to finish."""
        for name in list(self._spares):
            self._kill(name)

    def _kill(self, name: str) -> None:
        process = self._spares[name].process
        signal_group(process, signal.SIGKILL)
        reap(process)
        self._forget(name)

    def _forget(self, name: str) -> None:
        os.close(self._spares.pop(name).go_fd)
