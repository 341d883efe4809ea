"""The engine's processes start together, end together, and leave nothing behind, however one of them ends."""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from process_helpers import (
    children_of,
    running,
    stub_command,
    wait_until,
)
from supervisor_helpers import CONFIG, commands, read_json, start, user_program

from zipage.config import EngineConfig
from zipage.errors import EngineError
from zipage.supervisor import WORKER_COMMANDS, Supervisor

pytestmark = pytest.mark.usefixtures("engine_directory")


def start_failure(config: EngineConfig = CONFIG, **behaviours: str) -> EngineError:
    with pytest.raises(EngineError) as caught:
        Supervisor.start(config, commands(**behaviours))
    return caught.value


def blocked_signals(task: Path) -> int:
    """The mask of a process, or of a thread, by its directory in /proc."""
    lines = (task / "status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("SigBlk:"))


def test_default_commands_run_the_worker_modules() -> None:
    assert {name: list(command[1:]) for name, command in WORKER_COMMANDS.items()} == {
        name: ["-m", f"zipage.workers.{name}"] for name in ("mps", "tokenizer", "scheduler", "decode", "compression")
    }


def test_start_and_shutdown() -> None:
    supervisor = start(tokenizer="serve_async", scheduler="serve", decode="serve", compression="serve")
    assert set(supervisor.processes) == {"tokenizer", "scheduler", "decode", "compression"}
    assert running(supervisor.processes.values()) == list(supervisor.processes.values())
    assert supervisor.address == f"ipc://{supervisor.runtime_dir}/clients"
    assert stat.S_IMODE(supervisor.runtime_dir.stat().st_mode) == 0o700
    assert supervisor.status.max_model_len == 77
    supervisor.check()
    supervisor.shutdown()
    assert not supervisor.runtime_dir.exists()
    assert not children_of(os.getpid())
    supervisor.shutdown()
    assert supervisor.failure is None
    assert not supervisor.failed.is_set()


def test_children_inherit_configuration_and_pool_but_not_the_session() -> None:
    with start(tokenizer="describe", decode="describe", compression="describe") as supervisor:
        seen = {
            name: json.loads((supervisor.runtime_dir / f"{name}.json").read_text()) for name in supervisor.processes
        }
    for name, pid in supervisor.processes.items():
        assert seen[name]["config"] == ["m", 6]
        assert seen[name]["session"] == pid
        assert seen[name]["stdin"] == ""
    assert seen["tokenizer"]["memory"] == [False, False, False]
    assert seen["decode"]["memory"] == [4096, False, False]
    assert seen["compression"]["memory"] == [4096, 1, 2]
    assert seen["compression"]["pool_size"] == 4096


def test_shutdown_from_several_threads() -> None:
    supervisor = start(decode="serve")
    threads = [threading.Thread(target=supervisor.shutdown) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not supervisor.runtime_dir.exists()


def test_start_from_a_thread() -> None:
    started: list[Supervisor] = []
    thread = threading.Thread(target=lambda: started.append(start(decode="serve")))
    thread.start()
    thread.join(60)
    # The thread that started the engine has ended; the engine has not.
    assert not started[0].failed.wait(0.5)
    started[0].shutdown()
    assert started[0].failure is None


@pytest.mark.parametrize(
    "behaviour, message",
    [
        ("refuse", "decode worker failed: model must be a decoder"),
        ("break_down", "decode worker failed: ValueError: one thing and another"),
        ("exit_early", "decode worker ended with exit code 3: the last line"),
        ("die_early", "decode worker ended with SIGKILL"),
    ],
)
def test_failure_before_ready(behaviour: str, message: str) -> None:
    error = start_failure(tokenizer="silent", decode=behaviour)
    assert str(error) == message


def test_failure_carries_the_traceback_as_a_note() -> None:
    error = start_failure(decode="break_down")
    assert "in break_down" in error.__notes__[0]


def test_malformed_control_message() -> None:
    assert str(start_failure(decode="garbage")).startswith("malformed message on the control link: ")


def test_command_that_cannot_be_run() -> None:
    with pytest.raises(EngineError, match="decode worker could not be started: "):
        Supervisor.start(CONFIG, {"tokenizer": stub_command("serve", "tokenizer"), "decode": ["/no-such-program"]})


@pytest.mark.parametrize(
    "names, late",
    [
        (["decode"], "decode worker was"),
        (["tokenizer", "scheduler", "decode"], "tokenizer, scheduler and decode workers were"),
    ],
)
def test_child_that_is_never_ready(names: list[str], late: str) -> None:
    error = start_failure(EngineConfig(model="m", device="cpu", ready_timeout=0.5), **dict.fromkeys(names, "silent"))
    assert str(error) == f"{late} not ready within 0.5 s"


def test_temporary_directory_too_long_for_sockets(monkeypatch: pytest.MonkeyPatch, engine_directory: Path) -> None:
    long = engine_directory / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert str(start_failure(decode="serve")).startswith("TMPDIR must be a shorter path")
    long.rmdir()


@pytest.mark.parametrize(
    "number, message",
    [
        (signal.SIGKILL, "scheduler worker ended with SIGKILL"),
        (signal.SIGSEGV, "scheduler worker ended with SIGSEGV"),
        (signal.SIGTERM, "scheduler worker ended with exit code 0"),
        (signal.SIGRTMIN + 1, f"scheduler worker ended with signal {signal.SIGRTMIN + 1}"),
    ],
)
def test_child_ended_by_a_signal_after_ready(number: int, message: str) -> None:
    supervisor = start(scheduler="serve", decode="serve")
    os.kill(supervisor.processes["scheduler"], number)
    assert supervisor.failed.wait(30)
    with pytest.raises(EngineError) as caught:
        supervisor.check()
    assert str(caught.value) == message
    # Nobody has called shutdown, and yet the rest ends and the directory goes.
    assert wait_until(lambda: not supervisor.runtime_dir.exists())
    supervisor.shutdown()


def test_sigterm_stops_an_event_loop() -> None:
    supervisor = start(tokenizer="serve_async")
    os.kill(supervisor.processes["tokenizer"], signal.SIGTERM)
    assert supervisor.failed.wait(30)
    assert str(supervisor.failure) == "tokenizer worker ended with exit code 0"
    supervisor.shutdown()


def test_child_that_fails_after_ready() -> None:
    with start(tokenizer="break_down_late", decode="serve") as supervisor:
        (supervisor.runtime_dir / "go").touch()
        assert supervisor.failed.wait(30)
        for _ in range(2):
            with pytest.raises(EngineError) as caught:
                supervisor.check()
            assert str(caught.value) == "tokenizer worker failed: ValueError: too late"


def test_child_that_ignores_the_request_to_stop_ends_itself() -> None:
    supervisor = start(decode="stuck")
    thread = threading.Thread(target=supervisor.shutdown, args=[600])
    thread.start()
    thread.join(30)
    assert not supervisor.runtime_dir.exists()


def test_child_that_ignores_every_signal_is_killed_with_its_own_children() -> None:
    supervisor = start(tokenizer="serve", decode="unstoppable")
    helper = int((supervisor.runtime_dir / "helper").read_text())
    assert running([helper])
    supervisor.shutdown(grace=0.2)
    assert wait_until(lambda: not running([helper]))


def test_killed_child_takes_its_own_children_along() -> None:
    supervisor = start(tokenizer="unstoppable")
    helper = int((supervisor.runtime_dir / "helper").read_text())
    os.kill(supervisor.processes["tokenizer"], signal.SIGKILL)
    assert supervisor.failed.wait(30)
    assert wait_until(lambda: not running([helper]))
    supervisor.shutdown()


@pytest.mark.parametrize("ending, behaviour", [("wait", "stuck"), ("fork_and_wait", "serve")])
def test_sigkill_of_the_users_program_ends_everything(ending: str, behaviour: str) -> None:
    with user_program(ending, commands(tokenizer="serve_async", decode=behaviour)) as program:
        engine = read_json(program)
        assert len(running(engine["processes"].values())) == 2
        program.kill()
        try:
            # With a forked process the lifeline stays whole: only the change of parent tells.
            assert wait_until(lambda: not running(engine["processes"].values()))
            assert wait_until(lambda: not Path(engine["runtime_dir"]).exists())
        finally:
            if engine["forked"]:
                os.kill(engine["forked"], signal.SIGKILL)


def test_sigkill_of_the_users_program_while_the_engine_starts() -> None:
    with user_program("wait", commands(tokenizer="silent", decode="silent")) as program:
        assert wait_until(lambda: len(children_of(program.pid)) == 2)
        program.kill()


def test_program_that_ends_without_shutdown() -> None:
    with user_program("return", commands(tokenizer="serve", decode="serve")) as program:
        engine = read_json(program)
        assert program.wait(30) == 0
        assert not running(engine["processes"].values())
        assert not Path(engine["runtime_dir"]).exists()


def test_program_that_ends_without_python_knowing() -> None:
    with user_program("exit_at_once", commands(tokenizer="serve", decode="serve")) as program:
        engine = read_json(program)
        assert program.wait(30) == 0
        assert wait_until(lambda: not running(engine["processes"].values()))
        assert wait_until(lambda: not Path(engine["runtime_dir"]).exists())


def test_shutdown_while_a_forked_process_holds_the_lifeline() -> None:
    with user_program("fork_and_shutdown", commands(decode="serve")) as program:
        engine = read_json(program)
        try:
            assert program.wait(30) == 0
        finally:
            os.kill(engine["forked"], signal.SIGKILL)
        assert not running(engine["processes"].values())


def test_end_of_a_forked_process_leaves_the_engine_alone() -> None:
    with user_program("fork_and_check", commands(decode="serve")) as program:
        read_json(program)
        assert read_json(program) == [False, True]
        assert program.wait(30) == 0


def test_signals_wake_the_main_thread_of_every_process() -> None:
    ended_by = 1 << (signal.SIGINT - 1) | 1 << (signal.SIGTERM - 1)
    threads, before = Path("/proc/self/task"), os.listdir("/proc/self/task")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with start(tokenizer="serve", decode="serve") as supervisor:
        of_the_engine = [thread for thread in threads.iterdir() if thread.name not in before]
        assert of_the_engine
        assert all(blocked_signals(thread) & ended_by == ended_by for thread in of_the_engine)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
        for pid in supervisor.processes.values():
            main, *others = sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda thread: int(thread.name) != pid)
            assert blocked_signals(main) == 0
            assert all(blocked_signals(thread) & ended_by == ended_by for thread in others)


def test_ctrl_c_reaches_only_the_users_program() -> None:
    with user_program("wait", commands(tokenizer="serve", decode="serve")) as program:
        engine = read_json(program)
        os.killpg(program.pid, signal.SIGINT)
        output, _ = program.communicate(timeout=30)
        assert output == "interrupted\n"
        assert not running(engine["processes"].values())


def test_ctrl_c_while_the_engine_starts() -> None:
    with user_program("wait", commands(tokenizer="silent", decode="silent")) as program:
        assert wait_until(lambda: len(children_of(program.pid)) == 2)
        os.killpg(program.pid, signal.SIGINT)
        output, _ = program.communicate(timeout=30)
        assert output == "interrupted\n"


def test_imports_load_no_model_library() -> None:
    script = (
        "import sys, zipage.supervisor, zipage.links, zipage.workers.process;"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[]\n"
