"""A running engine, for the program that started it: its processes, watched from a thread of that program.

The supervisor is a daemon thread that owns the children and everything they share, so that neither signals nor other
threads of the program can come between; it leaves signals to the program's own threads. It starts workers again that
have ended (zipage/watch.py, and the rule in zipage/restarts.py), and ends all processes when that is impossible or the
program is done. It loads no model library.

The children (zipage/children.py) share a runtime directory (0700) with the options, the sockets and a log per child.
"""

import atexit
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import zmq

from zipage.children import Children
from zipage.config import EngineConfig
from zipage.errors import EngineError
from zipage.links import ControlReceiver, client_address
from zipage.messages import Status
from zipage.mps import CONTROL_PROGRAM, LONGEST_SOCKET_NAME, MPS, MpsPlan, gpu_present, plan_mps
from zipage.spares import choose_spares
from zipage.watch import Watch
from zipage.workers.process import CONFIG_FILE

WORKER_COMMANDS: Mapping[str, Sequence[str]] = {
    name: (sys.executable, "-m", f"zipage.workers.{name}")
    for name in (MPS, "tokenizer", "scheduler", "decode", "compression")
}

_GRACE_SECONDS = 5.0
# Until all are ready nothing has been accepted that a child could want to finish.
_STARTING_GRACE_SECONDS = 1.0


@dataclass(frozen=True)
class _Task:
    """What to run: an engine's options, the commands of its processes, its use of MPS, and who gets a spare."""

    config: EngineConfig
    commands: Mapping[str, Sequence[str]]
    plan: MpsPlan
    spares: Collection[str]


class Supervisor:
    """A running engine's processes. Made by `start`; a context manager that shuts the engine down at its end.

    All methods may be called from any thread. In a process forked from the one that started the engine they leave the
    engine alone, because the thread that owns it is not there.

    Attributes:
        address: where clients connect.
        runtime_dir: the directory with the sockets and a log per process.
        failure: why the engine ended by itself, or None.
        failed: is set once there is a `failure`.
    """

    address: str
    runtime_dir: Path
    _children: Children
    _watch: Watch

    def __init__(self, task: _Task) -> None:
        self.failure: EngineError | None = None
        self.failed = threading.Event()
        self._settled = threading.Event()
        self._stop = threading.Event()
        self._grace = _GRACE_SECONDS
        self._thread = threading.Thread(target=self._run, args=(task,), name="supervisor", daemon=True)

    @classmethod
    def start(
        cls,
        config: EngineConfig,
        commands: Mapping[str, Sequence[str]] = WORKER_COMMANDS,
        spares: Collection[str] | None = None,
    ) -> Self:
        """Start the engine's processes and wait until all of them are ready.

        Args:
            config: the options; `ready_timeout` is the deadline.
            commands: the command of each process, in the order of their starts; the runtime directory is added as its
                last argument. That of `mps` is used where the engine needs a daemon.
            spares: names of the processes that get a spare; None is those for which it pays.

        Raises:
            ConfigError: MPS is on where that is impossible.
            EngineError: a process ended, reported a failure or was late; every process has been ended.
        """
        gpu = gpu_present(os.environ)
        plan = plan_mps(config, os.environ, gpu=gpu, control=shutil.which(CONTROL_PROGRAM))
        spares = choose_spares(config, gpu=gpu) if spares is None else spares
        supervisor = cls(_Task(config, commands, plan, spares))
        atexit.register(supervisor.shutdown)
        try:
            with _signals_blocked():
                supervisor._thread.start()
            supervisor._settled.wait()
            supervisor.check()
        except BaseException:
            supervisor.shutdown()
            raise
        return supervisor

    @property
    def status(self) -> Status:
        """The engine as the scheduler described it when it was ready."""
        return self._watch.status

    @property
    def processes(self) -> dict[str, int]:
        """Process ids by name; one that is about to be started again can be missing."""
        return self._children.processes

    @property
    def spares(self) -> dict[str, int]:
        """Ids of the processes that wait to be started in another's place, by the name of that."""
        return self._children.spares.processes

    @property
    def restarts(self) -> dict[str, int]:
        """How often each process has been started again, by name."""
        return {name: starts - 1 for name, starts in self._children.starts.copy().items()}

    @property
    def mps(self) -> bool:
        """Whether the decode and the compression worker run side by side on a GPU, through CUDA MPS."""
        return self._watch.mps

    def check(self) -> None:
        """Raise the failure that ended the engine, if there is one.

        Raises:
            EngineError: one of the processes has ended by itself.
        """
        if self.failure is not None:
            raise self.failure.with_traceback(None)

    def shutdown(self, grace: float = _GRACE_SECONDS) -> None:
        """End every process and remove the runtime directory; returns when that is done, also when called again.

        Args:
            grace: seconds until a process that does not end is ended by force.
        """
        self._grace = grace
        self._stop.set()
        # A thread that an interrupt kept from starting has nothing to clean up.
        with contextlib.suppress(RuntimeError):
            self._thread.join()
        atexit.unregister(self.shutdown)

    def __enter__(self) -> Self:
        """The engine is running already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Shut the engine down."""
        self.shutdown()

    def _run(self, task: _Task) -> None:
        try:
            with contextlib.ExitStack() as resources:
                self._supervise(task, resources)
        finally:
            self._settled.set()

    def _supervise(self, task: _Task, resources: contextlib.ExitStack) -> None:
        """Start the children and watch them until the engine fails or `shutdown` is called.

        What has to be undone then goes into `resources`; a failure is known before that begins.
        """
        try:
            self.runtime_dir = _make_runtime_dir(resources)
            self.address = client_address(self.runtime_dir)
            (self.runtime_dir / CONFIG_FILE).write_bytes(msgspec.json.encode(task.config))
            control = ControlReceiver(resources.enter_context(zmq.Context()), self.runtime_dir)
            resources.callback(control.close)
            self._children = Children(self.runtime_dir, task.spares)
            resources.callback(self._end_children)
            self._watch = Watch(self._children, control, task.commands, task.config, task.plan)
            self._watch.run(self._settled, self._stop)
        except EngineError as error:
            self._fail(error)
        except Exception as error:
            self._fail(EngineError(f"the engine could not be run: {type(error).__name__}: {error}"))

    def _end_children(self) -> None:
        self._children.end(self._grace if self._settled.is_set() else _STARTING_GRACE_SECONDS)

    def _fail(self, error: EngineError) -> None:
        self.failure = error
        self.failed.set()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Threads and processes that are started meanwhile begin with all signals blocked but SIGCHLD.

    Python handles signals in the main thread, and one that another thread has taken from the kernel does not wake it:
    Ctrl-C would do nothing for as long as the program sleeps. A thread that starts processes takes many of them,
    because that blocks all signals for a moment, and whoever unblocks them first is given those that wait. SIGCHLD is
    dropped where it is not blocked; else the end of every child would wake the main thread.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGCHLD})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _make_runtime_dir(resources: contextlib.ExitStack) -> Path:
    """Make the runtime directory, readable by this user alone, and have `resources` remove it."""
    runtime_dir = Path(tempfile.mkdtemp(prefix="zipage-"))
    resources.callback(shutil.rmtree, runtime_dir, ignore_errors=True)
    if len(os.fsencode(runtime_dir / LONGEST_SOCKET_NAME)) > zmq.IPC_PATH_MAX_LEN:
        raise EngineError(f"TMPDIR must be a shorter path: a socket's path in {runtime_dir} would be too long")
    return runtime_dir
