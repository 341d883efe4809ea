"""The rule of restarts, and the supervisor that follows it with stub children."""

import json
import logging
import os
import signal
import subprocess

import pytest
from process_helpers import children_of, running, wait_until
from supervisor_helpers import commands, kill, kill_and_wait, read_json, start, user_program, wait_until_ready

from zipage import restarts
from zipage.config import EngineConfig
from zipage.engine_messages import Failed
from zipage.links import send_to_supervisor
from zipage.restarts import RestartRule
from zipage.supervisor import Supervisor

ALL = {"tokenizer": "serve", "scheduler": "serve", "decode": "serve", "compression": "serve"}


class TestRule:
    def test_a_process_that_serves_for_a_while_each_time_is_started_again_without_limit(self):
        rule = RestartRule()
        for minute in range(20):
            rule.note_ready("compression", 60.0 * minute)
            assert rule.may_restart("compression", 60.0 * minute + 1.0)

    def test_the_third_failure_in_a_row_is_the_last(self):
        rule = RestartRule()
        rule.note_ready("decode", 0.0)
        assert rule.may_restart("decode", 0.9)
        assert rule.may_restart("decode", 2.0)
        assert not rule.may_restart("decode", 3.0)

    def test_an_end_after_a_while_begins_the_count_anew(self):
        rule = RestartRule()
        for _ in range(10):
            assert rule.may_restart("decode", 0.0)
            assert rule.may_restart("decode", 0.0)
            rule.note_ready("decode", 0.0)
            assert rule.may_restart("decode", 5.0)

    def test_processes_are_counted_apart(self):
        rule = RestartRule()
        for name in ("decode", "compression", "mps"):
            assert rule.may_restart(name, 0.0)
            assert rule.may_restart(name, 0.0)

    def test_a_replaced_process_has_not_failed(self):
        rule = RestartRule()
        for _ in range(5):
            rule.note_ready("compression", 0.0)
            rule.note_replaced("compression")
        assert rule.may_restart("compression", 100.0)
        rule.note_ready("compression", 100.0)
        rule.note_replaced("compression")
        # Ready was its predecessor.
        assert rule.may_restart("compression", 200.0)
        assert not rule.may_restart("compression", 300.0)


@pytest.fixture
def never_steady(monkeypatch):
    """Every end counts as one soon after the start, however slow this machine is."""
    monkeypatch.setattr(restarts, "STEADY_SECONDS", float("inf"))


@pytest.fixture
def always_steady(monkeypatch):
    """No end of a process that was ready counts as a failure, however fast this machine is."""
    monkeypatch.setattr(restarts, "STEADY_SECONDS", 0.0)


@pytest.mark.usefixtures("engine_directory")
class TestSupervisor:
    def test_compression_is_started_again_alone(self, caplog, always_steady):
        with start(**ALL) as supervisor:
            before = supervisor.processes
            for _ in range(4):
                kill_and_wait(supervisor, "compression")
            after = supervisor.processes
            assert supervisor.restarts == {"tokenizer": 0, "scheduler": 0, "decode": 0, "compression": 4}
            assert running(after.values()) == list(after.values())
            assert {name for name in ALL if before[name] != after[name]} == {"compression"}
            assert set(children_of(os.getpid())) == set(after.values())
            assert wait_until(lambda: len(caplog.messages) == 4)
            supervisor.check()
        assert caplog.messages == [
            f"compression worker ended with SIGKILL; started again (restart {number})" for number in (1, 2, 3, 4)
        ]
        assert {record.levelno for record in caplog.records} == {logging.WARNING}

    def test_decode_takes_compression_along(self, caplog, always_steady):
        with start(**ALL) as supervisor:
            before = supervisor.processes
            kill_and_wait(supervisor, "decode", signal.SIGSEGV)
            wait_until_ready(supervisor, "compression")
            kill_and_wait(supervisor, "compression")
            assert wait_until(lambda: len(caplog.messages) == 2)
            after = supervisor.processes
            assert supervisor.restarts == {"tokenizer": 0, "scheduler": 0, "decode": 1, "compression": 2}
            assert {name for name in ALL if before[name] == after[name]} == {"tokenizer", "scheduler"}
            assert not running([before["decode"], before["compression"]])
        assert caplog.messages == [
            "decode worker ended with SIGSEGV; started again with compression (restart 1)",
            "compression worker ended with SIGKILL; started again (restart 2)",
        ]

    def test_both_workers_at_once(self, always_steady):
        with start(**ALL) as supervisor:
            before = supervisor.processes
            for name in ("compression", "decode"):
                os.kill(before[name], signal.SIGKILL)
            assert wait_until(lambda: supervisor.restarts["decode"] == 1 and supervisor.restarts["compression"] >= 1)
            assert wait_until(lambda: len(running(supervisor.processes.values())) == 4)
            supervisor.check()

    def test_memory_outlives_the_workers(self, always_steady):
        with start(decode="describe", compression="describe") as supervisor:

            def memory(name):
                wait_until_ready(supervisor, name)
                return json.loads((supervisor.runtime_dir / f"{name}.json").read_text())["memory"]

            assert memory("decode") == [4096, False, False]
            assert memory("compression") == [4096, 1, 2]
            kill_and_wait(supervisor, "compression")
            assert memory("compression") == [4096, 2, 4]
            kill_and_wait(supervisor, "decode")
            assert memory("decode") == [8192, False, False]
            assert memory("compression")[1:] == [3, 6]

    def test_a_worker_that_reports_its_failure(self, caplog):
        with start(decode="serve", compression="break_down_late") as supervisor:
            (supervisor.runtime_dir / "go").touch()
            assert wait_until(lambda: supervisor.restarts["compression"] >= 1)
            assert wait_until(lambda: caplog.messages)
        what = "compression worker failed: ValueError: too late; started again (restart 1)"
        assert caplog.messages[0] == what

    def test_the_log_is_kept_and_only_the_last_start_explains(self, never_steady):
        supervisor = start(decode="serve", compression="fall_again")
        kill(supervisor, "compression")
        log = supervisor.runtime_dir / "compression.log"
        assert log.read_text().startswith("---- compression worker, start 1\n---- compression worker, start 2\n")
        assert supervisor.failed.wait(60)
        assert str(supervisor.failure) == (
            "compression worker ended with SIGKILL: fallen (given up after 3 failures in a row)"
        )
        assert supervisor.failure.__notes__ == ["The log of the compression worker ends with:\nfallen"]
        assert wait_until(lambda: not supervisor.runtime_dir.exists())
        supervisor.shutdown()

    @pytest.mark.parametrize("name", ["decode", "compression"])
    def test_a_worker_that_does_not_start_again_ends_the_engine(self, name):
        supervisor = start(**{**ALL, name: "fail_again"})
        os.kill(supervisor.processes[name], signal.SIGKILL)
        assert supervisor.failed.wait(60)
        what = f"{name} worker failed: ValueError: not again (given up after 3 failures in a row)"
        assert str(supervisor.failure) == what
        assert "in fail_again" in supervisor.failure.__notes__[0]
        supervisor.shutdown()

    def test_a_restart_that_takes_too_long_ends_the_engine(self):
        config = EngineConfig(model="m", device="cpu", ready_timeout=2.0)
        behaviours = {"tokenizer": "serve", "decode": "serve", "compression": "silent_again"}
        supervisor = Supervisor.start(config, commands(**behaviours))
        os.kill(supervisor.processes["compression"], signal.SIGKILL)
        assert supervisor.failed.wait(60)
        assert str(supervisor.failure) == "compression worker was not ready within 2 s"
        supervisor.shutdown()

    def test_words_of_a_process_that_was_replaced_count_for_nothing(self, caplog, always_steady):
        with start(**ALL) as supervisor:
            replaced = supervisor.processes["decode"]
            kill_and_wait(supervisor, "decode")
            now = supervisor.processes["decode"]
            send_to_supervisor(supervisor.runtime_dir, Failed("decode", replaced, "long ago"))
            # By the time that these are through, the message above has been read.
            for _ in range(2):
                kill_and_wait(supervisor, "compression")
            assert supervisor.processes["decode"] == now
        assert not any("long ago" in message for message in caplog.messages)

    def test_shutdown_during_a_restart(self):
        supervisor = start(**{**ALL, "decode": "silent_again"})
        kill(supervisor, "decode")
        supervisor.shutdown()
        assert supervisor.failure is None
        assert not supervisor.runtime_dir.exists()
        assert not children_of(os.getpid())

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
    def test_end_of_the_users_program_during_a_restart(self, number):
        with user_program("wait", commands(tokenizer="serve", decode="silent_again", compression="serve")) as program:
            engine = read_json(program)
            os.kill(engine["processes"]["decode"], signal.SIGKILL)
            before = {program.pid, *engine["processes"].values()}
            assert wait_until(lambda: len(set(children_of(program.pid)) - before) >= 2)
            restarted = children_of(program.pid)
            os.killpg(program.pid, number)
            program.wait(30)
            assert wait_until(lambda: not running(restarted))

    def test_a_users_program_without_logging_shows_one_line(self):
        with user_program("wait", commands(decode="serve", compression="serve"), stderr=subprocess.PIPE) as program:
            engine = read_json(program)
            os.kill(engine["processes"]["compression"], signal.SIGKILL)
            line = program.stderr.readline()
            assert line == "compression worker ended with SIGKILL; started again (restart 1)\n"
            os.killpg(program.pid, signal.SIGINT)
            assert program.stderr.read() == ""
