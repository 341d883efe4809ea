"""Stands for nvidia-cuda-mps-control: `control.py PIPE_DIRECTORY [-f]`.

As the daemon it does what the environment variable FAKE_MPS says: `serve`, `refuse` to run, be `deaf` to commands, or
be `stubborn`, as one whose clients go on: it never answers `quit`. The daemon adds a line for its start, with its
process id and what it has been given, and for each command to the file FAKE_MPS_LOG. A file of that name that ends in
`.refuse` has every later daemon refuse.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path


def main() -> int:
    """Be the daemon, or send it what is on standard input."""
    address = str(Path(sys.argv[1]) / "control")
    if sys.argv[2:] == ["-f"]:
        return serve(address)
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.connect(address)
        except OSError:
            print("Cannot find MPS control daemon process")
            return 1
        link.sendall(sys.stdin.buffer.read())
        return 0 if link.recv(100) else 1


def serve(address: str) -> int:
    """Answer commands until `quit`."""
    behaviour, log = os.environ["FAKE_MPS"], Path(os.environ["FAKE_MPS_LOG"])
    given = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "CUDA_MPS_LOG_DIRECTORY")}
    note(log, "daemon", json.dumps([os.getpid(), os.getpgrp(), given]))
    if behaviour == "refuse" or log.with_suffix(".refuse").exists():
        return 1
    if behaviour == "deaf":
        time.sleep(1000)
    # As with the real one, what a killed daemon has left does not matter.
    Path(address).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        while True:
            link, _ = server.accept()
            with link:
                command = link.recv(100).decode().strip()
                note(log, "command", command)
                if command == "quit" and behaviour == "stubborn":
                    time.sleep(1000)
                link.sendall(b"ok\n")
            if command == "quit":
                return 0


def note(log: Path, kind: str, text: str) -> None:
    """Add a line to the log."""
    with open(log, "a") as file:
        file.write(f"{kind} {text}\n")


if __name__ == "__main__":
    sys.exit(main())
