"""A spare: a worker's program that was started in advance, and waits until it is told to take a worker's place.

It has the descriptor `GO_VARIABLE` in its environment, which becomes readable, and stays so, when it is told to go.
Until then it has imported its modules, and nothing else: it has no link, no memory and no device.
"""

import os
import select
import sys
from pathlib import Path

GO_VARIABLE = "ZIPAGE_GO_FD"


def log_path(runtime_dir: Path, name: str) -> Path:
    """The log of process `name`."""
    return runtime_dir / f"{name}.log"


def waiting_log_path(runtime_dir: Path, name: str) -> Path:
    """Where the spare of process `name` writes until it is told to go."""
    return runtime_dir / f"{name}.spare.log"


def wait_to_go(go_fd: int, stop_fd: int, log: Path) -> bool:
    """Wait until `go_fd` is readable, then write to `log`; False where `stop_fd` is readable before."""
    poller = select.poll()
    poller.register(go_fd, select.POLLIN)
    poller.register(stop_fd, select.POLLIN)
    if stop_fd in dict(poller.poll()):
        return False
    os.close(go_fd)
    sys.stdout.flush()
    sys.stderr.flush()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    return True
