"""Engines of stub children (tests/stub_children), and a user's program that has one."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from process_helpers import STUBS, stub_command, wait_until

from zipage.config import EngineConfig, ScoringOptions
from zipage.supervisor import Supervisor

CONFIG = EngineConfig(model="m", device="cpu", scoring=ScoringOptions(window=6), ready_timeout=60)


def commands(**behaviours: str) -> dict[str, list[str]]:
    """The command of every process, by its behaviour."""
    return {name: stub_command(behaviour, name) for name, behaviour in behaviours.items()}


def start(**behaviours: str) -> Supervisor:
    """Start an engine of processes that behave so."""
    return Supervisor.start(CONFIG, commands(**behaviours))


def kill(supervisor: Supervisor, name: str, number: signal.Signals = signal.SIGKILL) -> None:
    """End a process, and wait until another has taken its place."""
    pid = supervisor.processes[name]
    os.kill(pid, number)
    assert wait_until(lambda: supervisor.processes.get(name, pid) != pid), supervisor.failure


def kill_and_wait(supervisor: Supervisor, name: str, number: signal.Signals = signal.SIGKILL) -> None:
    """End a process, and wait until another has taken its place and said that it is ready."""
    kill(supervisor, name, number)
    wait_until_ready(supervisor, name)


def wait_until_ready(supervisor: Supervisor, name: str) -> None:
    """Wait until the process of that name that runs now has said that it is ready."""
    ready = supervisor.runtime_dir / f"{name}.ready"
    is_ready = wait_until(lambda: ready.exists() and ready.read_text() == str(supervisor.processes.get(name)))
    assert is_ready, supervisor.failure


@contextmanager
def user_program(
    ending: str,
    commands: Mapping[str, Sequence[str]],
    *,
    device: str = "cpu",
    spares: Sequence[str] = (),
    stderr: int | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A program of its own that starts an engine, in a process group of its own as under a shell.

    On a `device` that is not cpu it takes this machine for one with a GPU.
    """
    arguments = [ending, device, json.dumps(commands), json.dumps(spares)]
    command = [sys.executable, str(STUBS / "program.py"), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "starting\n"
            yield program
        finally:
            program.kill()


def read_json(program: subprocess.Popen[str]) -> dict:
    assert program.stdout is not None
    return json.loads(program.stdout.readline())
