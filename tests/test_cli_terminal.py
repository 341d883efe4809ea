"""`zipage` as a process of its own, with signals and a terminal, against a fake engine."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from process_helpers import wait_until

FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"


@contextmanager
def running(directory, *arguments, aborts=0, **streams):
    """A command line in a process of its own; `seen` in the directory tells what the engine saw."""
    command = [sys.executable, FAKE_ENGINE, directory, *arguments]
    process = subprocess.Popen(command, env=os.environ | {"EXPECTED_ABORTS": str(aborts)}, **streams)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_aborts_the_request_and_ends_the_engine(tmp_path, number, code):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with running(tmp_path, "run", "bundled", "hang", aborts=1, **pipes) as process:
        assert process.stdout.read(4) == b"HANG"
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert (tmp_path / "seen").read_text() == "aborted 1, shutdowns [1]"
    assert b"Traceback" not in err


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_serve_announces_its_address_until_a_signal(tmp_path, number, code):
    path = tmp_path / "address"
    with running(tmp_path, "serve", "--address-file", path, stdout=subprocess.PIPE) as process:
        address = process.stdout.readline().decode()
        assert address == f"ipc://{tmp_path}/engine\n"
        assert path.read_text() == address
        process.send_signal(number)
        process.communicate(timeout=20)
    assert process.returncode == code
    assert (tmp_path / "seen").read_text() == "aborted 0, shutdowns [1]"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["engine", "seen"]


def test_an_interrupted_file_is_finished_by_the_same_command(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "a"}\n{"prompt": "hang"}\n')
    arguments = ["run", "--input", source, "--output", output]
    with running(tmp_path, *arguments, aborts=1, stderr=subprocess.PIPE) as process:
        assert wait_until(lambda: output.exists() and output.read_bytes().endswith(b"\n"))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"1 of 2 lines were done; the same command goes on from there" in err
    source.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    with running(tmp_path, *arguments) as process:
        assert process.wait(20) == 0
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == [1, 2]


class Terminal:
    """What a user at a terminal types and sees."""

    def __init__(self):
        self._user, self.program = pty.openpty()
        self.screen = ""

    def type(self, text):
        os.write(self._user, text.encode())

    def read_until(self, text):
        """Read on until the screen shows `text` after what was read before; returns what came."""
        start = len(self.screen)
        while text not in self.screen[start:]:
            assert select.select([self._user], [], [], 20)[0], f"no {text!r} in {self.screen[start:]!r}"
            self.screen += os.read(self._user, 4096).decode().replace("\r\n", "\n")
        return self.screen[start:]

    def close(self):
        os.close(self._user)
        os.close(self.program)


@pytest.fixture
def terminal():
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_a_terminal_gets_an_example_and_then_a_conversation(tmp_path, terminal):
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.program)
    with running(tmp_path, "run", aborts=1, **streams) as process:
        first = terminal.read_until(">>> ")
        assert "An example of the bundled model's 6 kinds of task" in first
        assert "The answer is not exact" in first
        terminal.type("a b\n")
        assert "USER:A B\n" in terminal.read_until(">>> ")
        terminal.type("hang\n")
        terminal.read_until("HANG")
        process.send_signal(signal.SIGINT)
        assert "(stopped)" in terminal.read_until(">>> ")
        terminal.type("/exit\n")
        assert "output tokens" in terminal.read_until("prefix cache hits")
        assert process.wait(20) == 0
    assert (tmp_path / "seen").read_text() == "aborted 1, shutdowns [1]"


def test_several_prompts_on_a_terminal_show_a_progress_bar(tmp_path, terminal):
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.program)
    with running(tmp_path, "run", "bundled", "a", "hang", "c", aborts=1, **streams) as process:
        screen = terminal.read_until("0 running")
        assert "=== prompt 1 of 3 ===\nUSER:A\n" in screen
        assert "2/3" in screen
        assert "pool 25%" in terminal.screen + terminal.read_until("pool")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
