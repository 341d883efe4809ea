"""What the supervisor's thread does all day: starts the engine's processes in order, and reacts when one ends."""

import logging
import signal
import threading
import time
from collections.abc import Container, Iterable, Mapping, Sequence

from zipage.children import Children
from zipage.config import EngineConfig
from zipage.engine_messages import ChildMessage, Failed
from zipage.errors import EngineError
from zipage.links import ControlReceiver
from zipage.messages import Status
from zipage.mps import MPS, MpsPlan, without_mps
from zipage.restarts import COMPANIONS, MOST_FAILURES, RestartRule

_CUDA_WORKERS = ("compression", "decode")
# Where several processes have ended at once, the first of these is what the others are started again with.
_CAUSES = ("tokenizer", "scheduler", MPS, "decode", "compression")
_WATCH_SECONDS = 0.05
# What a child sent before it ended is in this process's socket buffer; this is the time to take it out of there. One
# that was killed had no time to say why.
_LAST_WORDS_SECONDS = 0.3

_log = logging.getLogger("zipage")


class Watch:
    """The engine's processes over time. One thread runs it; `status` and `mps` may be read by others.

    Attributes:
        status: the engine as the scheduler described it when it was ready.
    """

    status: Status

    def __init__(
        self,
        children: Children,
        control: ControlReceiver,
        commands: Mapping[str, Sequence[str]],
        config: EngineConfig,
        plan: MpsPlan,
    ) -> None:
        self._children = children
        self._control = control
        self._commands = {name: command for name, command in commands.items() if name != MPS or plan.needs_daemon}
        self._ready_timeout = config.ready_timeout
        self._mps_is_optional = config.mps == "auto"
        self._plan = plan
        self._rule = RestartRule()
        self._settled = False
        # Of the processes that are not ready: when they have to be. Some of them wait to be started.
        self._deadlines: dict[str, float] = {}
        self._to_start: list[str] = []

    @property
    def mps(self) -> bool:
        """Whether the decode and the compression worker are clients of a CUDA MPS daemon."""
        return self._plan.in_use

    def run(self, settled: threading.Event, stop: threading.Event) -> None:
        """Start all processes and watch them until `stop` is set; `settled` is set once all of them are ready.

        Raises:
            EngineError: a process that is not started again has ended, reported a failure, or was not ready in time.
        """
        self._plan.log()
        self._begin(self._commands)
        while not stop.is_set():
            self._children.spares.drop_ended()
            ended = dict(self._children.ended())
            message = self._control.receive(_patience(ended.values()))
            if message is not None:
                self._take(message)
                if self._settled:
                    settled.set()
            elif ended:
                self._recover({name: self._children.describe_exit(name, status) for name, status in ended.items()})
            self._start_next()
            self._check_deadlines()

    def _take(self, message: ChildMessage) -> None:
        name = message.process
        if self._children.processes.get(name) != message.pid:
            # The last words of a process that has been replaced since.
            return
        if isinstance(message, Failed):
            self._recover({name: f"failed: {message.reason}"})
            return
        self._deadlines.pop(name, None)
        self._rule.note_ready(name, time.monotonic())
        if message.status is not None:
            self.status = message.status
        self._settled = self._settled or not self._deadlines
        self._start_spares()

    def _start_spares(self) -> None:
        """Start the spares that are missing, once the engine is ready, of processes that are.

        It is called when one of them has got ready. So one whose spare does not last is not given another before it has
        ended itself, and imports do not compete with those of a process that requests wait for.
        """
        if self._settled:
            for name in self._children.spares.missing:
                if name in self._commands and name not in self._deadlines:
                    environment = self._plan.environment(name, self._children.runtime_dir)
                    self._children.spares.start(name, self._commands[name], environment)

    def _recover(self, ends: Mapping[str, str]) -> None:
        """Start processes again, some of which have ended; the values of `ends` say how.

        Raises:
            EngineError: the engine cannot go on.
        """
        name = min(ends, key=_CAUSES.index)
        if self._settled and name in COMPANIONS:
            if self._rule.may_restart(name, time.monotonic()):
                self._restart(name, ends[name])
                return
            how = f"{ends[name]} (given up after {MOST_FAILURES} failures in a row)"
        else:
            how = ends[name]
        if name != MPS or not self._mps_is_optional:
            raise self._children.failure(name, how)
        self._go_without_mps(how)

    def _restart(self, name: str, how: str) -> None:
        companions = [companion for companion in COMPANIONS[name] if companion in self._commands]
        beside = f" with {' and '.join(companions)}" if companions else ""
        what = " ".join(f"{name} worker {how}; started again{beside}".split())
        restart = self._children.starts[name]
        self._replace([name, *companions])
        _log.warning("%s (restart %d)", what, restart)

    def _go_without_mps(self, how: str) -> None:
        self._plan = without_mps(" ".join(f"{MPS} worker {how}".split()))
        self._plan.log()
        del self._commands[MPS]
        # They have the environment of the plan before.
        self._children.spares.kill()
        self._replace([MPS, *(name for name in _CUDA_WORKERS if name in self._commands)])

    def _replace(self, names: Sequence[str]) -> None:
        """End processes by force, and start again those that have a command."""
        # Clients of the pool first, then its owner, then the daemon that both need.
        self._children.kill(sorted(names, key=_CAUSES.index, reverse=True))
        for name in names:
            self._rule.note_replaced(name)
            self._deadlines.pop(name, None)
        self._begin(names)

    def _begin(self, names: Container[str]) -> None:
        """Start processes as soon as that is possible; their time to get ready runs from now."""
        deadline = time.monotonic() + self._ready_timeout
        begun = [name for name in self._commands if name in names]
        self._deadlines |= dict.fromkeys(begun, deadline)
        self._to_start = [name for name in self._commands if name in begun or name in self._to_start]
        self._start_next()

    def _start_next(self) -> None:
        """Start what is to be started and does not wait for the MPS daemon."""
        waiting = [name for name in self._to_start if name in _CUDA_WORKERS and MPS in self._deadlines]
        for name in self._to_start:
            if name not in waiting:
                environment = self._plan.environment(name, self._children.runtime_dir)
                self._children.start(name, self._commands[name], environment)
        self._to_start = waiting

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        late = [name for name, deadline in self._deadlines.items() if now > deadline]
        if late:
            error = EngineError(f"{_name_late(late)} not ready within {self._ready_timeout:g} s")
            for name in late:
                self._children.note_log(error, name)
            raise error


def _patience(ended: Iterable[int]) -> float:
    """How long to wait for a message where processes have ended with such return codes."""
    statuses = set(ended)
    if not statuses:
        return _WATCH_SECONDS
    return 0.0 if statuses == {-signal.SIGKILL} else _LAST_WORDS_SECONDS


def _name_late(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} worker was"
    return f"{', '.join(names[:-1])} and {names[-1]} workers were"
