"""Engines of stub children (tests/stub_children), and a user's program that has one."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from process_helpers import STUBS, stub_command

from zipage.config import EngineConfig, ScoringOptions
from zipage.supervisor import Supervisor

CONFIG = EngineConfig(model="m", device="cpu", scoring=ScoringOptions(window=6), ready_timeout=60)


def commands(**behaviours: str) -> dict[str, list[str]]:
    """The command of every process, by its behaviour."""
    return {name: stub_command(behaviour, name) for name, behaviour in behaviours.items()}


def start(**behaviours: str) -> Supervisor:
    """Start an engine of processes that behave so."""
    return Supervisor.start(CONFIG, commands(**behaviours))


@contextmanager
def user_program(
    ending: str,
    commands: Mapping[str, Sequence[str]],
    *,
    device: str = "cpu",
    stderr: int | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A program of its own that starts an engine, in a process group of its own as under a shell.

    On a `device` that is not cpu it takes this machine for one with a GPU.
    """
    command = [sys.executable, str(STUBS / "program.py"), ending, device, json.dumps(commands)]
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
