"""The life of a child process: how it learns its task, reports to the supervisor, and ends when it should.

A worker ends when the supervisor asks it to, when the supervisor is gone, or on SIGTERM. The supervisor holds the write
end of the *lifeline*, a pipe that every child inherits: a byte in it is the request to stop, its end without a byte
means that the supervisor has died. A child also notices when it gets another parent, because a process forked from the
supervisor may keep the write end open.
"""

import os
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zipage.config import EngineConfig
from zipage.engine_messages import Failed, Ready
from zipage.errors import ZipageError
from zipage.links import send_to_supervisor
from zipage.messages import Status
from zipage.mps import is_mps_client
from zipage.tracing import Tracer
from zipage.workers.spare import GO_VARIABLE, log_path, wait_to_go

CONFIG_FILE = "config.json"
LIFELINE_VARIABLE = "ZIPAGE_LIFELINE_FD"
POOL_VARIABLE = "ZIPAGE_POOL_FD"
SWAP_VARIABLE = "ZIPAGE_SWAP_FD"
JOURNAL_VARIABLE = "ZIPAGE_JOURNAL_FD"

# A worker that is told to stop in the middle of a long call has this long to come back from it.
_GRACE_SECONDS = 2.0
_PARENT_CHECK_MS = 250


@dataclass(frozen=True)
class WorkerContext:
    """What a worker is given.

    Attributes:
        name: `tokenizer`, `scheduler`, `decode`, `compression` or `mps`.
        runtime_dir: where the sockets of all links are.
        config: the engine's options.
        lifeline_fd: becomes readable, and stays so, once this process is to stop; nobody reads from it.
        pool_fd: the memory file of the KV pool, in the decode and the compression worker; its size is 0 until the
            decode worker sets it.
        swap_fd: the memory file for swapped requests, in the compression worker.
        journal_fd: the memory file for what the compression worker has to know after it was started again, there.
        tracer: writes what this process does and when, where tracing is on.

    The memory files outlive the processes: one that is started again finds them as its predecessor has left them.
    """

    name: str
    runtime_dir: Path
    config: EngineConfig
    lifeline_fd: int
    pool_fd: int | None
    swap_fd: int | None
    journal_fd: int | None
    tracer: Tracer


def run_worker(name: str, main: Callable[[WorkerContext], None], prepare: Callable[[], None] = lambda: None) -> None:
    """Run a worker's `main` as the whole of this process; the last argument is the runtime directory.

    A spare (zipage/workers/spare.py) calls `prepare` first, and waits until it is told to go. `prepare` takes time from
    `main`; it must do without device, links and the runtime directory.

    `main` returns, or raises whatever it likes, once `lifeline_fd` is readable; a watchdog ends the process two seconds
    later if it does not. An exception at any other time is reported to the supervisor, and the exit code is 1.
    """
    runtime_dir = Path(sys.argv[-1])
    lifeline = _Lifeline(int(os.environ[LIFELINE_VARIABLE]), runtime_dir)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _number, _frame: lifeline.stop())
    threading.Thread(target=lifeline.watch, name="lifeline", daemon=True).start()
    # The supervisor's thread blocks all of them, and the thread above goes on doing so: a signal that it took would not
    # wake this one.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        if _is_to_go(name, runtime_dir, lifeline.stop_fd, prepare):
            context = _load_context(name, runtime_dir, lifeline.stop_fd)
            try:
                main(context)
            finally:
                context.tracer.flush()
    except Exception as error:
        if not lifeline.stopping:
            _report_failure(name, runtime_dir, error)
            sys.exit(1)
    lifeline.clean_up()


def report_ready(context: WorkerContext, status: Status | None = None) -> None:
    """Tell the supervisor that this process can serve; the scheduler adds the engine's `status`."""
    send_to_supervisor(context.runtime_dir, Ready(context.name, os.getpid(), status))


def _is_to_go(name: str, runtime_dir: Path, stop_fd: int, prepare: Callable[[], None]) -> bool:
    """Whether `main` is to run: at once, or, in a spare, once that is told to go; False where it is to stop."""
    go_fd = _inherited_fd(GO_VARIABLE)
    if go_fd is None:
        return True
    prepare()
    return wait_to_go(go_fd, stop_fd, log_path(runtime_dir, name))


def _load_context(name: str, runtime_dir: Path, stop_fd: int) -> WorkerContext:
    config = msgspec.json.decode((runtime_dir / CONFIG_FILE).read_bytes(), type=EngineConfig)
    return WorkerContext(
        name=name,
        runtime_dir=runtime_dir,
        config=config,
        lifeline_fd=stop_fd,
        pool_fd=_inherited_fd(POOL_VARIABLE),
        swap_fd=_inherited_fd(SWAP_VARIABLE),
        journal_fd=_inherited_fd(JOURNAL_VARIABLE),
        tracer=Tracer(config.trace, name, is_mps_client(os.environ)),
    )


def _inherited_fd(variable: str) -> int | None:
    number = os.environ.get(variable)
    return None if number is None else int(number)


def _report_failure(name: str, runtime_dir: Path, error: Exception) -> None:
    """Send the reason to the supervisor; an error that zipage did not raise on purpose also leaves its traceback."""
    if isinstance(error, ZipageError):
        reason = str(error)
    else:
        reason = f"{type(error).__name__}: {error}"
        traceback.print_exception(error)
    send_to_supervisor(runtime_dir, Failed(name, os.getpid(), reason))


class _Lifeline:
    """Turns every order to stop into one file descriptor, and sees that it is obeyed."""

    def __init__(self, supervisor_fd: int, runtime_dir: Path) -> None:
        self._supervisor_fd = supervisor_fd
        self._runtime_dir = runtime_dir
        self._parent = os.getppid()
        self.stop_fd, self._stop_write_fd = os.pipe()

    @property
    def stopping(self) -> bool:
        """Whether this process is to stop."""
        return bool(_poll(self.stop_fd)) or bool(_poll(self._supervisor_fd)) or os.getppid() != self._parent

    def stop(self) -> None:
        """Make `stop_fd` readable for good."""
        os.write(self._stop_write_fd, b"\0")

    def watch(self) -> None:
        """Wait for an order to stop, pass it on, and end a process that does not follow it in time."""
        poller = select.poll()
        poller.register(self._supervisor_fd, select.POLLIN)
        poller.register(self.stop_fd, select.POLLIN)
        while os.getppid() == self._parent and not poller.poll(_PARENT_CHECK_MS):
            pass
        self.stop()
        time.sleep(_GRACE_SECONDS)
        self.clean_up()
        os._exit(0)

    def clean_up(self) -> None:
        """Remove the runtime directory where the supervisor is no longer there to do it."""
        # A dying process closes its files before its children get another parent, so the parent alone says too little.
        died = _poll(self._supervisor_fd) & (select.POLLIN | select.POLLHUP) == select.POLLHUP
        if died or os.getppid() != self._parent:
            shutil.rmtree(self._runtime_dir, ignore_errors=True)


def _poll(fd: int) -> int:
    """The poll events that hold for a descriptor at this moment, 0 where there are none."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return sum(events for _, events in poller.poll(0))
