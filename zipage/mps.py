"""CUDA MPS: whether an engine uses it, the private daemon, and what its clients find in their environment.

Without MPS the kernels of two processes on one GPU take turns; with it they run side by side. An engine's own daemon
needs no privileges: it has its directory of pipes, which its clients find through an environment variable.

https://docs.nvidia.com/deploy/mps/ and the manual page of nvidia-cuda-mps-control document the variables and commands.
"""

import contextlib
import logging
import os
import select
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from zipage.config import EngineConfig
from zipage.errors import ConfigError, EngineError

MPS = "mps"
CONTROL_PROGRAM = "nvidia-cuda-mps-control"
PIPE_VARIABLE = "CUDA_MPS_PIPE_DIRECTORY"
LOG_VARIABLE = "CUDA_MPS_LOG_DIRECTORY"
PRIORITY_VARIABLE = "CUDA_MPS_CLIENT_PRIORITY"
PERCENTAGE_VARIABLE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
# The daemon's longest socket, inside the runtime directory.
LONGEST_SOCKET_NAME = f"{MPS}/control_privileged"

_CLIENTS = ("decode", "compression")
_DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"
_TURNS = "compression takes turns with decoding on the GPU"
# Of the priorities 0 (normal) and 1 (below normal).
_BELOW_NORMAL = "1"
_POLL_SECONDS = 0.1
# A worker that is told to stop has two seconds for the end of one command, `quit`, and the daemon's exit.
_COMMAND_SECONDS = 1.0
_EXIT_SECONDS = 0.5

_log = logging.getLogger("zipage")


@dataclass(frozen=True)
class MpsPlan:
    """What an engine does about MPS.

    Attributes:
        use: `absent` leaves everything as it is, `off` keeps the engine's processes away from any daemon, `private` is
            a daemon of the engine's own, `users` is one that the user has started.
        note: one line for the log, or an empty string.
        level: the logging level of that line.
        thread_percentage: limit of the compression worker, or None.
    """

    use: Literal["absent", "off", "private", "users"]
    note: str = ""
    level: int = logging.INFO
    thread_percentage: int | None = None

    @property
    def in_use(self) -> bool:
        """Whether the decode and the compression worker are clients of a daemon."""
        return self.use in ("private", "users")

    @property
    def needs_daemon(self) -> bool:
        """Whether the engine has to start a daemon."""
        return self.use == "private"

    def log(self) -> None:
        """Write the note to the log."""
        if self.note:
            _log.log(self.level, "%s", self.note)

    def environment(self, name: str, runtime_dir: Path) -> dict[str, str]:
        """The variables that process `name` is given."""
        if name not in _CLIENTS or self.use == "absent":
            return {}
        if self.use == "off":
            # Where nobody listens, CUDA does without MPS.
            return {PIPE_VARIABLE: str(runtime_dir / "no-mps")}
        variables = {PIPE_VARIABLE: str(runtime_dir / MPS)} if self.needs_daemon else {}
        if name == "compression":
            variables[PRIORITY_VARIABLE] = _BELOW_NORMAL
            if self.thread_percentage is not None:
                variables[PERCENTAGE_VARIABLE] = str(self.thread_percentage)
        return variables


def plan_mps(config: EngineConfig, environment: Mapping[str, str], *, gpu: bool, control: str | None) -> MpsPlan:
    """Decide what an engine does about MPS.

    Args:
        config: `mps` is what the user wants.
        environment: of the user's program.
        gpu: whether there is one that the engine can use.
        control: path of nvidia-cuda-mps-control, or None where there is none.

    Raises:
        ConfigError: `mps` is on where that is impossible.
    """
    if config.device == "cpu" or not gpu:
        if config.mps == "on":
            raise ConfigError("mps is on, but this machine has no NVIDIA GPU for the engine; allowed here: auto, off")
        return MpsPlan("absent")
    if config.mps == "off":
        return MpsPlan("off", f"mps is off: {_TURNS}")
    if environment.get(PIPE_VARIABLE):
        note = f"using the CUDA MPS daemon that {PIPE_VARIABLE} names, as it is"
        return MpsPlan("users", note, thread_percentage=config.mps_thread_percentage)
    if control is None:
        if config.mps == "on":
            raise ConfigError(f"mps is on, but {CONTROL_PROGRAM} is not on the PATH; allowed here: auto, off")
        return MpsPlan("absent", f"{CONTROL_PROGRAM} is not on the PATH: {_TURNS}", logging.WARNING)
    return MpsPlan("private", thread_percentage=config.mps_thread_percentage)


def without_mps(reason: str) -> MpsPlan:
    """The plan of an engine whose daemon does not run."""
    return MpsPlan("off", f"{reason}: {_TURNS}", logging.WARNING)


def gpu_present(environment: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether the machine whose file system begins at `root` has an NVIDIA GPU that CUDA programs may use.

    The environment can hide all of them from CUDA.
    """
    if environment.get(_DEVICES_VARIABLE) in ("", "-1"):
        return False
    return any((root / "dev").glob("nvidia[0-9]*")) or (root / "dev/dxg").exists()


def is_mps_client(environment: Mapping[str, str]) -> bool:
    """Whether a process with this environment uses CUDA through a daemon, if it uses CUDA at all."""
    pipes = environment.get(PIPE_VARIABLE)
    return bool(pipes) and Path(str(pipes)).is_dir()


class MpsDaemon:
    """The private daemon of an engine: a child of this process, in its process group, as is the server it starts.

    A context manager that ends it. Killing the daemon ends its server too, and its clients get errors; a directory of
    pipes that a killed daemon has left can be used by the next.
    """

    def __init__(self, runtime_dir: Path) -> None:
        """Start it, with its pipes in `runtime_dir`/mps, and its logs, as far as they are files, in the same place.

        Raises:
            OSError: it cannot be run.
        """
        directory = runtime_dir / MPS
        directory.mkdir(exist_ok=True)
        self._environment = {**os.environ, PIPE_VARIABLE: str(directory), LOG_VARIABLE: str(directory)}
        # The daemon would number the visible devices anew, and its clients choose among those numbers once more.
        self._environment.pop(_DEVICES_VARIABLE, None)
        # In the foreground it writes its log to standard output.
        self._process = subprocess.Popen([CONTROL_PROGRAM, "-f"], stdin=subprocess.DEVNULL, env=self._environment)
        self._has_answered = False

    def wait_until_it_answers(self, seconds: float, stop_fd: int) -> None:
        """Return when clients can connect, or `stop_fd` is readable.

        Raises:
            EngineError: the daemon has ended, or does not answer within `seconds`.
        """
        deadline = time.monotonic() + seconds
        while not self._command("get_server_list"):
            if self._ended_or_stopped(stop_fd):
                return
            if time.monotonic() > deadline:
                raise EngineError(f"{CONTROL_PROGRAM} did not answer within {seconds:g} s")
        self._has_answered = True

    def wait(self, stop_fd: int) -> None:
        """Return when `stop_fd` is readable.

        Raises:
            EngineError: the daemon has ended.
        """
        while not self._ended_or_stopped(stop_fd):
            pass

    def end(self) -> None:
        """Have it end when its clients have, and by force where that takes long."""
        # With clients that go on, `quit` waits for them, whatever timeout it is given.
        if self._has_answered and self._command("quit"):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_EXIT_SECONDS)
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        """It has been started already."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.end()

    def _ended_or_stopped(self, stop_fd: int) -> bool:
        """Wait a moment for `stop_fd` to become readable. Raises EngineError where the daemon has ended."""
        if select.select([stop_fd], [], [], _POLL_SECONDS)[0]:
            return True
        if self._process.poll() is not None:
            raise EngineError(f"{CONTROL_PROGRAM} ended with status {self._process.returncode}")
        return False

    def _command(self, command: str) -> bool:
        """Send one control command; False where no daemon has answered it in time."""
        try:
            answer = subprocess.run(
                [CONTROL_PROGRAM],
                input=command.encode() + b"\n",
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=self._environment,
                timeout=_COMMAND_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return False
        return answer.returncode == 0
