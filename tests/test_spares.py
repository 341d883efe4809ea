"""Spares, with stub children: who has one, and that it is told to go, replaced, and never left behind."""

import json
import os
import signal
from pathlib import Path

import pytest
from process_helpers import children_of, running, stub_command, wait_until
from supervisor_helpers import CONFIG, commands, kill, kill_and_wait, read_json, user_program, wait_until_ready

from zipage import restarts
from zipage.children import Children
from zipage.config import EngineConfig
from zipage.spares import choose_spares
from zipage.supervisor import Supervisor

ALL = {"tokenizer": "serve", "scheduler": "serve", "decode": "serve", "compression": "serve"}
SPARES = ("compression",)


@pytest.mark.parametrize(
    "fields, gpu, spares",
    [
        ({"kv_budget": 640}, True, {"compression"}),
        ({"kv_budget": 640, "device": "cuda"}, True, {"compression"}),
        ({"kv_budget": 640}, False, set()),
        ({"kv_budget": 640, "device": "cpu"}, True, set()),
        ({}, True, set()),
    ],
)
def test_who_gets_a_spare(fields, gpu, spares):
    assert choose_spares(EngineConfig(model="m", **fields), gpu=gpu) == spares


@pytest.fixture(autouse=True)
def always_steady(monkeypatch):
    """No end of a process that was ready counts as a failure, however fast this machine is."""
    monkeypatch.setattr(restarts, "STEADY_SECONDS", 0.0)


def start(**behaviours):
    """An engine whose compression worker has a spare."""
    return Supervisor.start(CONFIG, commands(**behaviours), SPARES)


def wait_for_spare(supervisor, other_than=None):
    """The id of the compression worker's spare, as soon as there is one."""
    assert wait_until(lambda: supervisor.spares.get("compression") not in (None, other_than)), supervisor.failure
    return supervisor.spares["compression"]


def wait_until_prepared(runtime_dir, pid):
    """Wait until a spare has nothing left to do but to wait."""
    prepared = runtime_dir / "compression.prepared"
    assert wait_until(lambda: prepared.exists() and prepared.read_text() == str(pid))


def spare_of(program, engine):
    """The id of the only spare of a user's program, by what the program says of its engine."""
    others = {engine["forked"], *engine["processes"].values()}
    assert wait_until(lambda: len(set(children_of(program.pid)) - others) == 1)
    return (set(children_of(program.pid)) - others).pop()


@pytest.mark.usefixtures("engine_directory")
class TestSpare:
    def test_without_a_gpu_there_is_none(self):
        with Supervisor.start(CONFIG, commands(**ALL)) as supervisor:
            kill_and_wait(supervisor, "compression")
            kill_and_wait(supervisor, "compression")
            assert supervisor.spares == {}
            assert set(children_of(os.getpid())) == set(supervisor.processes.values())

    def test_it_takes_the_place_of_its_worker_and_is_replaced(self, caplog):
        with start(**ALL) as supervisor:
            spare = None
            for _ in range(3):
                spare = wait_for_spare(supervisor, other_than=spare)
                wait_until_prepared(supervisor.runtime_dir, spare)
                assert set(supervisor.processes) == set(ALL)
                kill_and_wait(supervisor, "compression")
                assert supervisor.processes["compression"] == spare
            spare = wait_for_spare(supervisor, other_than=spare)
            assert set(children_of(os.getpid())) == {*supervisor.processes.values(), spare}
            assert supervisor.restarts == {"tokenizer": 0, "scheduler": 0, "decode": 0, "compression": 3}
            supervisor.check()
        assert caplog.messages == [
            f"compression worker ended with SIGKILL; started again (restart {number})" for number in (1, 2, 3)
        ]

    def test_it_is_what_a_fresh_process_is(self):
        with start(decode="describe", compression="describe") as supervisor:
            description = supervisor.runtime_dir / "compression.json"
            fresh, spare = json.loads(description.read_text()), wait_for_spare(supervisor)
            wait_until_prepared(supervisor.runtime_dir, spare)
            kill_and_wait(supervisor, "compression")
            assert json.loads(description.read_text()) == {**fresh, "session": spare, "memory": [4096, 2, 4]}

    def test_it_goes_with_the_decode_worker(self):
        with start(**ALL) as supervisor:
            spare = wait_for_spare(supervisor)
            kill_and_wait(supervisor, "decode")
            wait_until_ready(supervisor, "compression")
            assert supervisor.processes["compression"] == spare

    def test_told_to_go_before_it_has_imported(self):
        with start(decode="serve", compression="serve_after_imports") as supervisor:
            spare = wait_for_spare(supervisor)
            kill(supervisor, "compression")
            assert supervisor.processes["compression"] == spare
            (supervisor.runtime_dir / "imported").touch()
            wait_until_ready(supervisor, "compression")
            supervisor.check()

    @pytest.mark.parametrize("number, how", [(signal.SIGKILL, "SIGKILL"), (signal.SIGTERM, "exit code 0")])
    def test_one_that_ends_by_itself_is_no_loss(self, caplog, number, how):
        with start(**ALL) as supervisor:
            before, spare = supervisor.processes, wait_for_spare(supervisor)
            wait_until_prepared(supervisor.runtime_dir, spare)
            os.kill(spare, number)
            assert wait_until(lambda: supervisor.spares == {})
            assert wait_until(lambda: caplog.messages == [f"spare compression worker ended with {how}"])
            # It has not begun to work.
            assert supervisor.processes == before
            assert (supervisor.runtime_dir / "compression.ready").read_text() == str(before["compression"])
            # A fresh process takes the worker's place, and gets a spare again.
            kill_and_wait(supervisor, "compression")
            assert supervisor.processes["compression"] != spare
            spare = wait_for_spare(supervisor)
            kill_and_wait(supervisor, "compression")
            assert supervisor.processes["compression"] == spare

    def test_both_at_once(self):
        with start(**ALL) as supervisor:
            spare = wait_for_spare(supervisor)
            for pid in (spare, supervisor.processes["compression"]):
                os.kill(pid, signal.SIGKILL)
            assert wait_until(lambda: supervisor.restarts["compression"] >= 1)
            assert wait_until(lambda: supervisor.processes.get("compression") not in (None, spare))
            wait_until_ready(supervisor, "compression")
            wait_for_spare(supervisor, other_than=spare)
            supervisor.check()

    def test_one_that_cannot_be_started_is_no_loss(self, caplog, engine_directory):
        program = engine_directory / "program"
        program.write_text(f'#!/bin/sh\nrm "$0"\nexec {" ".join(stub_command("serve", "compression"))} "$@"\n')
        program.chmod(0o700)
        programs = {**commands(decode="serve"), "compression": [str(program)]}
        with Supervisor.start(CONFIG, programs, SPARES) as supervisor:
            assert wait_until(lambda: caplog.messages)
            assert caplog.messages[0].startswith("spare compression worker could not be started: ")
            assert supervisor.spares == {}
            supervisor.check()

    def test_one_whose_end_nobody_has_noticed_is_not_told_to_go(self, runtime_dir):
        children, command = Children(runtime_dir, SPARES), stub_command("silent", "compression")
        children.spares.start("compression", command, {})
        assert children.spares.missing == []
        ((_, spare),) = children.spares.processes.items()
        os.kill(spare, signal.SIGKILL)
        assert wait_until(lambda: not running([spare]))
        children.start("compression", command, {})
        assert children.processes["compression"] != spare
        children.end(grace=60)


@pytest.mark.usefixtures("engine_directory")
class TestLog:
    def test_a_spare_does_not_speak_for_its_worker(self, caplog):
        with start(decode="serve", compression="break_imports") as supervisor:
            spare = wait_for_spare(supervisor)
            waiting_log = supervisor.runtime_dir / "compression.spare.log"
            assert wait_until(lambda: waiting_log.read_text() == "importing\n")
            kill(supervisor, "compression")
            assert supervisor.processes["compression"] == spare
            assert wait_until(lambda: len(caplog.messages) == 1)
            # What it writes from now on is what the worker writes.
            (supervisor.runtime_dir / "imported").touch()
            assert wait_until(lambda: len(caplog.messages) == 2)
            wait_until_ready(supervisor, "compression")
        assert caplog.messages[:2] == [
            "compression worker ended with SIGKILL; started again (restart 1)",
            "compression worker ended with exit code 1: no such module; started again (restart 2)",
        ]

    def test_one_that_has_gone_writes_to_the_workers_log(self, caplog):
        with start(decode="serve", compression="talk") as supervisor:
            spare = wait_for_spare(supervisor)
            kill_and_wait(supervisor, "compression")
            assert supervisor.processes["compression"] == spare
            log = (supervisor.runtime_dir / "compression.log").read_text()
            assert log == "".join(f"---- compression worker, start {number}\nspoken\n" for number in (1, 2))
            kill(supervisor, "compression")
            assert wait_until(lambda: len(caplog.messages) == 2)
        assert {message.partition(";")[0] for message in caplog.messages} == {
            "compression worker ended with SIGKILL: spoken"
        }


@pytest.mark.usefixtures("engine_directory")
class TestEnd:
    @pytest.mark.parametrize("behaviour", ["serve", "serve_after_imports"])
    def test_shutdown(self, behaviour):
        supervisor = start(decode="serve", compression=behaviour)
        spare = wait_for_spare(supervisor)
        supervisor.shutdown(grace=600)
        assert not running([spare])
        assert not children_of(os.getpid())
        assert supervisor.failure is None

    def test_failure_of_the_engine(self):
        supervisor = start(**ALL)
        spare = wait_for_spare(supervisor)
        os.kill(supervisor.processes["tokenizer"], signal.SIGKILL)
        assert supervisor.failed.wait(30)
        supervisor.shutdown()
        assert not running([spare])

    @pytest.mark.parametrize("ending", ["wait", "fork_and_wait"])
    def test_sigkill_of_the_users_program(self, ending):
        with user_program(ending, commands(**ALL), spares=SPARES) as program:
            engine = read_json(program)
            spare = spare_of(program, engine)
            wait_until_prepared(Path(engine["runtime_dir"]), spare)
            program.kill()
            try:
                assert wait_until(lambda: not running([spare, *engine["processes"].values()]))
                assert wait_until(lambda: not Path(engine["runtime_dir"]).exists())
            finally:
                if engine["forked"]:
                    os.kill(engine["forked"], signal.SIGKILL)

    def test_sigkill_of_the_users_program_during_imports(self):
        behaviours = {"decode": "serve", "compression": "serve_after_imports"}
        with user_program("wait", commands(**behaviours), spares=SPARES) as program:
            engine = read_json(program)
            spare = spare_of(program, engine)
            program.kill()
            assert wait_until(lambda: not running(engine["processes"].values()))
            runtime_dir = Path(engine["runtime_dir"])
            assert wait_until(lambda: not runtime_dir.exists())
            assert running([spare])
            runtime_dir.mkdir()
            (runtime_dir / "imported").touch()
            assert wait_until(lambda: not running([spare]))

    def test_ctrl_c(self):
        with user_program("wait", commands(**ALL), spares=SPARES) as program:
            spare = spare_of(program, read_json(program))
            os.killpg(program.pid, signal.SIGINT)
            assert program.wait(30) == 0
            assert not running([spare])

    def test_program_that_ends_without_shutdown(self):
        with user_program("return", commands(**ALL), spares=SPARES) as program:
            read_json(program)
            assert program.wait(30) == 0
