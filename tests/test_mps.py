"""Whether an engine uses CUDA MPS, and the life of its own daemon, with a fake nvidia-cuda-mps-control."""

import json
import os
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from process_helpers import children_of, running, wait_until
from supervisor_helpers import commands, read_json, user_program

from zipage.config import EngineConfig
from zipage.errors import ConfigError, EngineError
from zipage.mps import CONTROL_PROGRAM, PIPE_VARIABLE, MpsDaemon, MpsPlan, gpu_present, is_mps_client, plan_mps
from zipage.supervisor import WORKER_COMMANDS, Supervisor

RUNTIME_DIR = Path("/run/engine")
TURNS = "compression takes turns with decoding on the GPU"


def config(**fields):
    return EngineConfig(model="m", ready_timeout=60, **fields)


def plan(environment=None, *, gpu=True, control="/usr/bin/control", **fields):
    return plan_mps(config(**fields), environment or {}, gpu=gpu, control=control)


class TestPlan:
    def test_auto_starts_a_daemon_where_it_can(self):
        assert plan() == MpsPlan("private")
        assert plan(mps="on", mps_thread_percentage=30) == MpsPlan("private", thread_percentage=30)

    def test_nothing_is_done_or_said_without_a_gpu(self):
        assert plan(gpu=False) == plan(device="cpu") == plan(gpu=False, mps="off") == MpsPlan("absent")

    def test_auto_without_the_program_says_what_follows(self):
        absent = plan(control=None)
        assert (absent.in_use, absent.needs_daemon) == (False, False)
        assert absent.note == f"nvidia-cuda-mps-control is not on the PATH: {TURNS}"

    def test_off_says_what_follows(self):
        off = plan(mps="off")
        assert (off.in_use, off.needs_daemon, off.note) == (False, False, f"mps is off: {TURNS}")

    def test_the_users_own_daemon_is_used_as_it_is(self):
        users = plan({"CUDA_MPS_PIPE_DIRECTORY": "/theirs"}, control=None, mps="on")
        assert (users.in_use, users.needs_daemon) == (True, False)
        assert "CUDA_MPS_PIPE_DIRECTORY" in users.note

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"gpu": False}, "mps is on, but this machine has no NVIDIA GPU"),
            ({"control": None}, "mps is on, but nvidia-cuda-mps-control is not on the PATH"),
        ],
    )
    def test_on_is_an_error_where_it_cannot_be(self, given, words):
        with pytest.raises(ConfigError, match=words):
            plan(mps="on", **given)

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"mps": "on", "device": "cpu"}, "mps is on, but device is cpu"),
            ({"mps": "off", "mps_thread_percentage": 10}, "mps_thread_percentage needs mps, which is off"),
            ({"mps_thread_percentage": 0}, r"mps_thread_percentage must be in \[1, 100\], not 0"),
            ({"mps_thread_percentage": 101}, r"mps_thread_percentage must be in \[1, 100\], not 101"),
        ],
    )
    def test_options_that_contradict_each_other(self, fields, words):
        with pytest.raises(ConfigError, match=words):
            config(**fields)

    def test_only_clients_get_variables(self):
        private = MpsPlan("private", thread_percentage=30)
        pipe = {"CUDA_MPS_PIPE_DIRECTORY": "/run/engine/mps"}
        assert private.environment("decode", RUNTIME_DIR) == pipe
        assert private.environment("compression", RUNTIME_DIR) == {
            **pipe,
            "CUDA_MPS_CLIENT_PRIORITY": "1",
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "30",
        }
        for name in ("mps", "tokenizer", "scheduler"):
            assert private.environment(name, RUNTIME_DIR) == {}

    def test_clients_of_the_users_daemon_keep_its_directory(self):
        users = MpsPlan("users")
        assert users.environment("decode", RUNTIME_DIR) == {}
        assert users.environment("compression", RUNTIME_DIR) == {"CUDA_MPS_CLIENT_PRIORITY": "1"}

    def test_off_keeps_clients_from_every_daemon(self):
        for name in ("decode", "compression"):
            directory = MpsPlan("off").environment(name, RUNTIME_DIR)["CUDA_MPS_PIPE_DIRECTORY"]
            assert directory not in ("/run/engine/mps", "/tmp/nvidia-mps")
        assert MpsPlan("absent").environment("compression", RUNTIME_DIR) == {}


class TestGpu:
    @pytest.mark.parametrize(
        ("files", "environment", "present"),
        [
            ((), {}, False),
            (("nvidiactl", "nvidia-uvm"), {}, False),
            (("nvidia0",), {}, True),
            (("nvidia3",), {"CUDA_VISIBLE_DEVICES": "0"}, True),
            (("dxg",), {}, True),
            (("nvidia0",), {"CUDA_VISIBLE_DEVICES": ""}, False),
            (("nvidia0",), {"CUDA_VISIBLE_DEVICES": "-1"}, False),
        ],
    )
    def test_device_files_and_what_the_environment_hides(self, tmp_path, files, environment, present):
        (tmp_path / "dev").mkdir()
        for file in files:
            (tmp_path / "dev" / file).touch()
        assert gpu_present(environment, tmp_path) == present


@dataclass
class FakeControl:
    """The fake program, first on the PATH."""

    log: Path
    monkeypatch: pytest.MonkeyPatch

    def behave(self, behaviour):
        self.monkeypatch.setenv("FAKE_MPS", behaviour)

    @property
    def daemons(self):
        """Process id, process group and environment of each daemon, in order."""
        return [json.loads(text) for kind, text in self._lines() if kind == "daemon"]

    @property
    def commands(self):
        return [text for kind, text in self._lines() if kind == "command"]

    def _lines(self):
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.split(" ", 1) for line in lines]


@pytest.fixture
def control(tmp_path, monkeypatch):
    program = tmp_path / "bin" / CONTROL_PROGRAM
    program.parent.mkdir()
    fake = Path(__file__).parent / "fake_mps" / "control.py"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{fake}" "$CUDA_MPS_PIPE_DIRECTORY" "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_MPS_LOG", str(tmp_path / "control.log"))
    monkeypatch.setenv("FAKE_MPS", "serve")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    return FakeControl(tmp_path / "control.log", monkeypatch)


@pytest.fixture
def stop():
    """A descriptor that becomes readable when something is written to the other."""
    read_fd, write_fd = os.pipe()
    yield read_fd, write_fd
    os.close(read_fd)
    os.close(write_fd)


class TestDaemon:
    def test_it_starts_and_quits(self, control, stop, runtime_dir, monkeypatch):
        monkeypatch.setattr("zipage.mps._COMMAND_SECONDS", 60.0)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        with MpsDaemon(runtime_dir) as daemon:
            daemon.wait_until_it_answers(60, stop[0])
            os.write(stop[1], b"\0")
            daemon.wait(stop[0])
        [[pid, group, given]] = control.daemons
        assert group == os.getpgrp()
        assert given == {"CUDA_VISIBLE_DEVICES": None, "CUDA_MPS_LOG_DIRECTORY": str(runtime_dir / "mps")}
        assert control.commands == ["get_server_list", "quit"]
        assert not running([pid])

    def test_one_that_does_not_quit_is_killed(self, control, stop, runtime_dir):
        control.behave("stubborn")
        with MpsDaemon(runtime_dir) as daemon:
            daemon.wait_until_it_answers(60, stop[0])
        assert not running([control.daemons[0][0]])

    def test_one_that_does_not_answer(self, control, stop, runtime_dir):
        control.behave("deaf")
        with (
            pytest.raises(EngineError, match=r"nvidia-cuda-mps-control did not answer within 0\.5 s"),
            MpsDaemon(runtime_dir) as daemon,
        ):
            daemon.wait_until_it_answers(0.5, stop[0])
        assert not children_of(os.getpid())

    def test_one_that_does_not_run(self, control, stop, runtime_dir):
        control.behave("refuse")
        with (
            pytest.raises(EngineError, match="nvidia-cuda-mps-control ended with status 1"),
            MpsDaemon(runtime_dir) as daemon,
        ):
            daemon.wait_until_it_answers(60, stop[0])

    def test_the_end_of_a_running_one(self, control, stop, runtime_dir):
        with MpsDaemon(runtime_dir) as daemon:
            daemon.wait_until_it_answers(60, stop[0])
            os.kill(control.daemons[0][0], signal.SIGKILL)
            with pytest.raises(EngineError, match="nvidia-cuda-mps-control ended with status -9"):
                daemon.wait(stop[0])


def engine_commands():
    """The real MPS worker with stubs for the others."""
    behaviours = {"tokenizer": "serve", "scheduler": "serve", "decode": "describe", "compression": "describe"}
    return {"mps": list(WORKER_COMMANDS["mps"]), **commands(**behaviours)}


def client_variables(supervisor, name):
    """The variables about MPS that the process which runs now has been given."""
    ready = supervisor.runtime_dir / f"{name}.ready"
    assert wait_until(lambda: ready.exists() and ready.read_text() == str(supervisor.processes.get(name)))
    return json.loads((supervisor.runtime_dir / f"{name}.json").read_text())["mps"]


def spare_of(supervisor, other_than=None):
    """The id of the compression worker's spare, as soon as there is one."""
    assert wait_until(lambda: supervisor.spares.get("compression") not in (None, other_than))
    return supervisor.spares["compression"]


@pytest.mark.usefixtures("engine_directory")
class TestSupervisor:
    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch):
        monkeypatch.setattr("zipage.supervisor.gpu_present", lambda _environment: True)

    def start(self, **fields):
        return Supervisor.start(config(**fields), engine_commands())

    def test_clients_start_when_the_daemon_answers(self, control, caplog):
        with self.start(mps_thread_percentage=40) as supervisor:
            assert supervisor.mps
            assert set(supervisor.processes) == {"mps", "tokenizer", "scheduler", "decode", "compression"}
            pipe = {"CUDA_MPS_PIPE_DIRECTORY": str(supervisor.runtime_dir / "mps")}
            assert client_variables(supervisor, "decode") == pipe
            assert client_variables(supervisor, "compression") == {
                **pipe,
                "CUDA_MPS_CLIENT_PRIORITY": "1",
                "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "40",
            }
            [[daemon, group, _]] = control.daemons
            assert group == supervisor.processes["mps"]
            assert running([daemon])
        assert not running([daemon])
        assert caplog.messages == []

    def test_compression_alone_is_started_again_under_the_same_daemon(self, control, caplog):
        with self.start() as supervisor:
            os.kill(supervisor.processes["compression"], signal.SIGKILL)
            assert wait_until(lambda: supervisor.restarts["compression"] == 1)
            assert "CUDA_MPS_CLIENT_PRIORITY" in client_variables(supervisor, "compression")
            assert (supervisor.restarts["decode"], supervisor.restarts["mps"]) == (0, 0)
        assert len(control.daemons) == 1

    @pytest.mark.parametrize("name", ["decode", "mps"])
    def test_decode_and_daemon_are_started_again_together(self, control, caplog, name):
        with self.start() as supervisor:
            old = [control.daemons[0][0], *(supervisor.processes[name] for name in ("decode", "compression", "mps"))]
            os.kill(supervisor.processes[name], signal.SIGKILL)
            assert wait_until(lambda: supervisor.restarts["compression"] == 1 and supervisor.restarts["decode"] == 1)
            assert supervisor.restarts["mps"] == 1
            assert wait_until(lambda: not running(old))
            assert supervisor.mps
            assert client_variables(supervisor, "decode")["CUDA_MPS_PIPE_DIRECTORY"].endswith("/mps")
            [message] = caplog.messages
        others = {"decode": "compression and mps", "mps": "decode and compression"}[name]
        assert message == f"{name} worker ended with SIGKILL; started again with {others} (restart 1)"
        assert len(control.daemons) == 2

    def test_end_of_the_daemon_is_noticed_by_its_worker(self, control, caplog):
        with self.start() as supervisor:
            os.kill(control.daemons[0][0], signal.SIGKILL)
            assert wait_until(lambda: supervisor.restarts["decode"] == 1)
        assert caplog.messages[0].startswith("mps worker failed: nvidia-cuda-mps-control ended with status -9; started")

    def test_auto_goes_on_without_a_daemon_that_does_not_start(self, control, caplog):
        control.behave("refuse")
        with self.start() as supervisor:
            assert not supervisor.mps
            assert set(supervisor.processes) == {"tokenizer", "scheduler", "decode", "compression"}
            assert client_variables(supervisor, "compression").keys() == {"CUDA_MPS_PIPE_DIRECTORY"}
        [message] = caplog.messages
        assert message == f"mps worker failed: nvidia-cuda-mps-control ended with status 1: {TURNS}"

    def test_on_is_an_error_where_the_daemon_does_not_start(self, control):
        control.behave("refuse")
        with pytest.raises(EngineError, match="mps worker failed: nvidia-cuda-mps-control ended with status 1"):
            self.start(mps="on")

    def test_auto_gives_up_a_daemon_that_does_not_start_again(self, control, caplog):
        with self.start() as supervisor:
            control.log.with_suffix(".refuse").touch()
            os.kill(supervisor.processes["mps"], signal.SIGKILL)
            assert wait_until(lambda: not supervisor.mps)
            assert client_variables(supervisor, "decode")["CUDA_MPS_PIPE_DIRECTORY"].endswith("/no-mps")
            before = supervisor.restarts
            os.kill(supervisor.processes["decode"], signal.SIGKILL)
            assert wait_until(lambda: supervisor.restarts["decode"] == before["decode"] + 1)
            assert "mps" not in supervisor.processes
            supervisor.check()
        assert "given up after 3 failures in a row" in "".join(caplog.messages)

    def test_a_spare_has_the_variables_of_a_client(self, control):
        with self.start(kv_budget=640, mps_thread_percentage=40) as supervisor:
            fresh, spare = client_variables(supervisor, "compression"), spare_of(supervisor)
            os.kill(supervisor.processes["compression"], signal.SIGKILL)
            assert wait_until(lambda: supervisor.processes.get("compression") == spare)
            assert client_variables(supervisor, "compression") == fresh
            assert len(fresh) == 3

    def test_a_spare_goes_on_without_a_daemon_when_the_engine_does(self, control):
        with self.start(kv_budget=640) as supervisor:
            old = spare_of(supervisor)
            control.log.with_suffix(".refuse").touch()
            os.kill(supervisor.processes["mps"], signal.SIGKILL)
            spare = spare_of(supervisor, other_than=old)
            without = {"CUDA_MPS_PIPE_DIRECTORY": str(supervisor.runtime_dir / "no-mps")}
            assert client_variables(supervisor, "compression") == without
            os.kill(supervisor.processes["compression"], signal.SIGKILL)
            assert wait_until(lambda: supervisor.processes.get("compression") == spare)
            assert client_variables(supervisor, "compression") == without
            assert not running([old])

    def test_the_users_own_daemon_is_left_alone(self, control, monkeypatch, caplog):
        caplog.set_level("INFO", "zipage")
        monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/theirs")
        with self.start() as supervisor:
            assert supervisor.mps
            assert client_variables(supervisor, "decode") == {"CUDA_MPS_PIPE_DIRECTORY": "/theirs"}
            os.kill(supervisor.processes["decode"], signal.SIGKILL)
            assert wait_until(lambda: supervisor.restarts["decode"] == 1)
            assert "mps" not in supervisor.processes
        assert control.daemons == []
        assert caplog.messages[0].startswith("using the CUDA MPS daemon")

    def test_a_stubborn_daemon_does_not_keep_the_engine_from_ending(self, control):
        control.behave("stubborn")
        self.start().shutdown()
        assert not running([control.daemons[0][0]])

    def test_shutdown_before_the_daemon_answers(self, control):
        control.behave("deaf")
        with user_program("wait", engine_commands(), device="auto") as program:
            assert wait_until(lambda: control.daemons)
            os.killpg(program.pid, signal.SIGINT)
            assert program.wait(30) == 0
        assert not running([control.daemons[0][0]])

    @pytest.mark.parametrize("behaviour", ["serve", "stubborn"])
    def test_sigkill_of_the_users_program_ends_the_daemon(self, control, behaviour):
        control.behave(behaviour)
        with user_program("wait", engine_commands(), device="auto") as program:
            engine = read_json(program)
            children = children_of(program.pid)
            assert control.daemons[0][0] in children
            program.kill()
            assert wait_until(lambda: not running(children))
            assert wait_until(lambda: not Path(engine["runtime_dir"]).exists())


def test_imports_load_no_model_library() -> None:
    script = "import sys, zipage.workers.mps; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[]\n"


def test_who_is_a_client(tmp_path):
    assert is_mps_client({PIPE_VARIABLE: str(tmp_path)})
    assert not is_mps_client({PIPE_VARIABLE: str(tmp_path / "no-mps")})
    assert not is_mps_client({PIPE_VARIABLE: ""})
    assert not is_mps_client({})
