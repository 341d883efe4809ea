"""A child process for the lifecycle tests: `stub.py BEHAVIOUR NAME RUNTIME_DIR`."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import uvloop
import zmq

from zipage.engine_messages import Ready
from zipage.errors import ModelError
from zipage.links import control_address, run_until_stopped, send_to_supervisor
from zipage.messages import Status
from zipage.workers.process import WorkerContext, report_ready, run_worker
from zipage.workers.spare import GO_VARIABLE

_BEHAVIOUR, _NAME, _RUNTIME_DIR = sys.argv[1:]
_POOL_BYTES = 4096


def _wait_for(file: str) -> None:
    """Wait until a file is in the runtime directory."""
    while not (Path(_RUNTIME_DIR) / file).exists():
        time.sleep(0.01)


def _prepare() -> None:
    """Write the process id to NAME.prepared."""
    (Path(_RUNTIME_DIR) / f"{_NAME}.prepared").write_text(str(os.getpid()))


def _wait_for_stop(context: WorkerContext) -> None:
    select.select([context.lifeline_fd], [], [])


def _status() -> Status:
    numbers = dict.fromkeys(Status.__struct_fields__, 0)
    return Status(**numbers | {"model": "stub", "max_model_len": 77, "integrity_errors": []})


def _ready(context: WorkerContext) -> None:
    """Report it, then write the process id to NAME.ready."""
    report_ready(context, _status() if context.name == "scheduler" else None)
    _write(context, "ready", str(os.getpid()))


def _write(context: WorkerContext, ending: str, text: str) -> None:
    """Write NAME.ending; nobody sees it half written."""
    draft = context.runtime_dir / f"{context.name}.draft"
    draft.write_text(text)
    draft.replace(context.runtime_dir / f"{context.name}.{ending}")


def serve(context: WorkerContext) -> None:
    """Do everything right."""
    _ready(context)
    _wait_for_stop(context)


def talk(context: WorkerContext) -> None:
    """Do everything right, and say something."""
    print("spoken", flush=True)
    serve(context)


def serve_async(context: WorkerContext) -> None:
    """Do everything right, in an event loop."""

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.01)

    _ready(context)
    uvloop.run(run_until_stopped(context.lifeline_fd, tick()))


def describe(context: WorkerContext) -> None:
    """Write what was inherited to NAME.json.

    The decode worker makes the pool larger and the compression worker its other memory files; it looks at the pool.
    """
    size = None
    if context.name == "decode":
        os.ftruncate(context.pool_fd, os.fstat(context.pool_fd).st_size + _POOL_BYTES)
    if context.name == "compression":
        os.ftruncate(context.swap_fd, os.fstat(context.swap_fd).st_size + 1)
        os.ftruncate(context.journal_fd, os.fstat(context.journal_fd).st_size + 2)
        while not os.fstat(context.pool_fd).st_size and not select.select([context.lifeline_fd], [], [], 0.02)[0]:
            pass
        size = os.fstat(context.pool_fd).st_size
    memory = (context.pool_fd, context.swap_fd, context.journal_fd)
    seen = {
        "config": [context.config.model, context.config.scoring.window],
        "memory": [fd is not None and os.fstat(fd).st_size for fd in memory],
        "pool_size": size,
        "session": os.getsid(0),
        "stdin": sys.stdin.read(),
        "mps": {key: value for key, value in os.environ.items() if key.startswith("CUDA_MPS")},
    }
    _write(context, "json", json.dumps(seen))
    serve(context)


def silent(context: WorkerContext) -> None:
    """Never get ready."""
    _wait_for_stop(context)


def stuck(context: WorkerContext) -> None:
    """Get ready, then never look at anything again."""
    _ready(context)
    time.sleep(1000)


def refuse(context: WorkerContext) -> None:
    """Fail as a worker does that finds the user's options wrong."""
    raise ModelError("model must be a decoder")


def break_down(context: WorkerContext) -> None:
    """Fail as a worker does that has a bug."""
    raise ValueError("one thing\nand another")


def break_down_late(context: WorkerContext) -> None:
    """Fail once a file called `go` is in the runtime directory."""
    _ready(context)
    _wait_for("go")
    raise ValueError("too late")


def fail_again(context: WorkerContext) -> None:
    """Do everything right at the first start; fail at every later one."""
    if _started_again():
        raise ValueError("not again")
    serve(context)


def fall_again(context: WorkerContext) -> None:
    """Do everything right at the first start; end as soon as it is ready at every later one."""
    again = _started_again()
    _ready(context)
    if again:
        print("fallen", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    _wait_for_stop(context)


def silent_again(context: WorkerContext) -> None:
    """Do everything right at the first start; never get ready at any later one."""
    if not _started_again():
        _ready(context)
    _wait_for_stop(context)


def _started_again() -> bool:
    first = Path(_RUNTIME_DIR) / f"{_NAME}.first"
    if first.exists():
        return True
    first.touch()
    return False


def garbage(context: WorkerContext) -> None:
    """Send what is no message."""
    with zmq.Context() as sockets, sockets.socket(zmq.PUSH) as socket:
        socket.connect(control_address(context.runtime_dir))
        socket.send(b"\xc1")
    _wait_for_stop(context)


def exit_early() -> None:
    """End before anything is set up."""
    print("the last line", file=sys.stderr)
    print(flush=True)
    os._exit(3)


def die_early() -> None:
    """End as the kernel ends what takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def unstoppable() -> None:
    """Ignore every request to end, and have a child that does so too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", _RUNTIME_DIR])
    (Path(_RUNTIME_DIR) / "helper").write_text(str(helper.pid))
    send_to_supervisor(Path(_RUNTIME_DIR), Ready(_NAME, os.getpid()))
    time.sleep(1000)


def serve_after_imports() -> None:
    """Do everything right; a spare imports until a file called `imported` is in the runtime directory."""
    if GO_VARIABLE in os.environ:
        _wait_for("imported")
    run_worker(_NAME, serve, _prepare)


def break_imports() -> None:
    """Do everything right, but for a spare, which is no program once `imported` is there."""
    if GO_VARIABLE in os.environ:
        print("importing", flush=True)
        _wait_for("imported")
        sys.exit("no such module")
    run_worker(_NAME, serve)


_WORKERS = (
    serve,
    talk,
    serve_async,
    describe,
    silent,
    stuck,
    refuse,
    break_down,
    break_down_late,
    fail_again,
    fall_again,
    silent_again,
    garbage,
)
_PROGRAMS = (exit_early, die_early, unstoppable, serve_after_imports, break_imports)

if __name__ == "__main__":
    for program in _PROGRAMS:
        if program.__name__ == _BEHAVIOUR:
            program()
    for worker in _WORKERS:
        if worker.__name__ == _BEHAVIOUR:
            run_worker(_NAME, worker, _prepare)
