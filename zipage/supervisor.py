"""Starts the engine's processes, watches them, and ends all of them when one ends or the user's program is done.

The supervisor lives in the process that the user started: a daemon thread that owns the children and everything they
share, so that neither signals nor other threads of that process can come between. It loads no model library.

Shared with the children: a runtime directory (0700) with the options, the sockets and a log per child; the *lifeline*,
a pipe whose write end only the supervisor has (zipage/workers/process.py says what it means); and the memory file of
the KV pool, which has no name in the file system and so vanishes with the last process that has it open.
"""

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import zmq

from zipage.config import EngineConfig
from zipage.errors import EngineError
from zipage.links import ControlReceiver, client_address
from zipage.messages import Failed, Ready, Status
from zipage.workers.process import CONFIG_FILE, LIFELINE_VARIABLE, POOL_VARIABLE

WORKER_COMMANDS: Mapping[str, Sequence[str]] = {
    name: (sys.executable, "-m", f"zipage.workers.{name}")
    for name in ("tokenizer", "scheduler", "decode", "compression")
}

_POOL_WORKERS = ("decode", "compression")
# What the user has not set otherwise. Threads that spin at OpenMP's barriers for long take the cores that the thread
# they wait for needs: with one busy process on two cores, steps of the bundled model took 30 times as long as alone
# without this limit, and 4 times with it. Memory that goes back to the system after every large tensor costs a fifth
# of a step in page faults.
_CPU_ENVIRONMENT = {
    "GOMP_SPINCOUNT": "10000",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}
_WATCH_SECONDS = 0.05
_EXIT_POLL_SECONDS = 0.01
_GRACE_SECONDS = 5.0
# Until all are ready nothing has been accepted that a child could want to finish.
_STARTING_GRACE_SECONDS = 1.0
_TERMINATE_SECONDS = 1.0
_REAP_SECONDS = 10.0
# What a child sent before it ended is in this process's socket buffer; this is the time to take it out of there.
_LAST_WORDS_SECONDS = 0.3
_LOG_TAIL_BYTES = 8192
_LOG_LINE_CHARACTERS = 500
_LONGEST_SOCKET_NAME = "compression"


class Supervisor:
    """A running engine's processes. Made by `start`; a context manager that shuts the engine down at its end.

    All methods may be called from any thread. In a process forked from the one that started the engine they leave the
    engine alone, because the thread that owns it is not there.

    Attributes:
        address: where clients connect.
        runtime_dir: the directory with the sockets and a log per process.
        status: the engine as the scheduler described it when it was ready.
        processes: process ids by name.
        failure: why the engine ended by itself, or None.
        failed: is set once there is a `failure`.
    """

    address: str
    runtime_dir: Path
    status: Status
    processes: Mapping[str, int]

    def __init__(self, config: EngineConfig, commands: Mapping[str, Sequence[str]]) -> None:
        self.failure: EngineError | None = None
        self.failed = threading.Event()
        self._settled = threading.Event()
        self._stop = threading.Event()
        self._grace = _GRACE_SECONDS
        self._thread = threading.Thread(target=self._run, args=(config, commands), name="supervisor", daemon=True)

    @classmethod
    def start(cls, config: EngineConfig, commands: Mapping[str, Sequence[str]] = WORKER_COMMANDS) -> Self:
        """Start the engine's processes and wait until all of them are ready.

        Args:
            config: the options; `ready_timeout` is the deadline.
            commands: the command of each process; the runtime directory is added as its last argument.

        Raises:
            EngineError: a process ended, reported a failure or was late; every process has been ended.
        """
        supervisor = cls(config, commands)
        atexit.register(supervisor.shutdown)
        try:
            supervisor._thread.start()
            supervisor._settled.wait()
            supervisor.check()
        except BaseException:
            supervisor.shutdown()
            raise
        return supervisor

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

    def _run(self, config: EngineConfig, commands: Mapping[str, Sequence[str]]) -> None:
        try:
            with contextlib.ExitStack() as resources:
                self._supervise(config, commands, resources)
        finally:
            self._settled.set()

    def _supervise(
        self, config: EngineConfig, commands: Mapping[str, Sequence[str]], resources: contextlib.ExitStack
    ) -> None:
        """Start the children and watch them until one of them fails or `shutdown` is called.

        What has to be undone then goes into `resources`; a failure is known before that begins.
        """
        try:
            self.runtime_dir = _make_runtime_dir(resources)
            self.address = client_address(self.runtime_dir)
            (self.runtime_dir / CONFIG_FILE).write_bytes(msgspec.json.encode(config))
            control = ControlReceiver(resources.enter_context(zmq.Context()), self.runtime_dir)
            resources.callback(control.close)
            children = _Children(self.runtime_dir)
            resources.callback(lambda: children.end(self._grace if self._settled.is_set() else _STARTING_GRACE_SECONDS))
            children.spawn(commands)
            self.processes = children.processes
            self._watch(children, control, config.ready_timeout)
        except EngineError as error:
            self._fail(error)
        except Exception as error:
            self._fail(EngineError(f"the engine could not be run: {type(error).__name__}: {error}"))

    def _watch(self, children: "_Children", control: ControlReceiver, ready_timeout: float) -> None:
        """Raises EngineError where a child ends, reports a failure, or is not ready in time."""
        pending = list(children.processes)
        deadline = time.monotonic() + ready_timeout
        while not self._stop.is_set():
            ended = next(children.ended(), None)
            message = control.receive(_LAST_WORDS_SECONDS if ended else _WATCH_SECONDS)
            if isinstance(message, Failed):
                raise children.failure(message.process, f"failed: {message.reason}")
            if isinstance(message, Ready) and message.process in pending:
                pending.remove(message.process)
                if message.status is not None:
                    self.status = message.status
                if not pending:
                    self._settled.set()
            if ended and message is None:
                raise children.failure(ended[0], children.describe_exit(*ended))
            if pending and time.monotonic() > deadline:
                raise EngineError(f"{_name_late(pending)} not ready within {ready_timeout:g} s")

    def _fail(self, error: EngineError) -> None:
        self.failure = error
        self.failed.set()


class _Children:
    """The engine's child processes and the lifeline that they hang on."""

    def __init__(self, runtime_dir: Path) -> None:
        self._runtime_dir = runtime_dir
        # The read end stays open here, so that writing never meets a pipe without readers.
        self._lifeline_read_fd, self._lifeline_write_fd = os.pipe()
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def processes(self) -> dict[str, int]:
        """Process ids by name."""
        return {name: child.pid for name, child in self._children.items()}

    def spawn(self, commands: Mapping[str, Sequence[str]]) -> None:
        """Start every process in a session of its own, so that a terminal's Ctrl-C does not reach it.

        Raises:
            EngineError: a command cannot be run.
        """
        pool_fd = os.memfd_create("zipage-kv")
        try:
            for name, command in commands.items():
                self._spawn_one(name, command, pool_fd if name in _POOL_WORKERS else None)
        finally:
            os.close(pool_fd)

    def _spawn_one(self, name: str, command: Sequence[str], pool_fd: int | None) -> None:
        environment = {**_CPU_ENVIRONMENT, **os.environ}
        environment.pop(POOL_VARIABLE, None)
        environment[LIFELINE_VARIABLE] = str(self._lifeline_read_fd)
        inherited = [self._lifeline_read_fd]
        if pool_fd is not None:
            environment[POOL_VARIABLE] = str(pool_fd)
            inherited.append(pool_fd)
        try:
            with open(self._log_path(name), "wb") as log:
                self._children[name] = subprocess.Popen(
                    [*command, str(self._runtime_dir)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    pass_fds=inherited,
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
        log = _read_tail(self._log_path(name))
        if log:
            error.add_note(f"The log of the {name} worker ends with:\n{log}")
        return error

    def describe_exit(self, name: str, status: int) -> str:
        """How process `name` ended, with the last line of its log."""
        what = f"ended with {_name_status(status)}"
        log = _read_tail(self._log_path(name))
        return f"{what}: {log.splitlines()[-1][:_LOG_LINE_CHARACTERS]}" if log else what

    def end(self, grace: float) -> None:
        """Ask all processes to stop, end by force what is left after `grace` seconds, and reap them."""
        os.write(self._lifeline_write_fd, b"\0")
        os.close(self._lifeline_write_fd)
        self._wait(grace)
        self._signal(signal.SIGTERM)
        self._wait(_TERMINATE_SECONDS)
        self._signal(signal.SIGKILL)
        for child in self._children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_REAP_SECONDS)
        os.close(self._lifeline_read_fd)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while len(list(self.ended())) < len(self._children) and time.monotonic() < deadline:
            time.sleep(_EXIT_POLL_SECONDS)

    def _signal(self, number: signal.Signals) -> None:
        """Signal the group of every process that is not reaped: what an ended one has left behind is in its group."""
        for child in self._children.values():
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, number)

    def _log_path(self, name: str) -> Path:
        return self._runtime_dir / f"{name}.log"


def _make_runtime_dir(resources: contextlib.ExitStack) -> Path:
    """Make the runtime directory, readable by this user alone, and have `resources` remove it."""
    runtime_dir = Path(tempfile.mkdtemp(prefix="zipage-"))
    resources.callback(shutil.rmtree, runtime_dir, ignore_errors=True)
    if len(os.fsencode(runtime_dir / _LONGEST_SOCKET_NAME)) > zmq.IPC_PATH_MAX_LEN:
        raise EngineError(f"TMPDIR must be a shorter path: a socket's path in {runtime_dir} would be too long")
    return runtime_dir


def _name_status(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _name_late(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} worker was"
    return f"{', '.join(names[:-1])} and {names[-1]} workers were"


def _read_tail(path: Path) -> str:
    """The last lines of a log; an empty string where there is none."""
    try:
        with open(path, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").strip()
    except OSError:
        return ""
