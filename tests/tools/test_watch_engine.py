"""The live view: speeds and processor shares from differences, one view, and how it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_engine import FakeEngine, fake_status
from process_helpers import short_temporary_directory
from rich.console import Console

from tools.process_usage import ProcessUsage, engine_processes
from tools.watch_engine import Look, main, processor_shares, rates, view
from zipage import LLM, Client


def look(time, processes=(), **status):
    return Look(time, fake_status(**status), list(processes))


def text_of(renderable):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


BEFORE = look(
    10.0,
    [ProcessUsage("decode", 5, 1.0, 2**20)],
    output_tokens=100,
    steps=10,
    compressions=4,
    preemptions=1,
    prompt_tokens=50,
)
AFTER = look(
    12.0,
    [ProcessUsage("decode", 5, 2.5, 3 * 2**20), ProcessUsage("scheduler", 6, 9.0, 2**20)],
    output_tokens=300,
    steps=20,
    compressions=5,
    preemptions=1,
    prompt_tokens=50,
    running=3,
    waiting=2,
    kv_budget=256,
    slots_total=8,
    slots_used=2,
)


def test_speeds_are_differences_over_time():
    assert rates(BEFORE, AFTER) == {
        "output tokens/s": 100.0,
        "prompt tokens/s": 0.0,
        "steps/s": 5.0,
        "compressions/s": 0.5,
        "preemptions/s": 0.0,
    }


def test_processes_are_measured_between_two_looks():
    assert processor_shares(BEFORE, AFTER) == {5: 0.75}


def test_a_view_shows_requests_memory_speeds_and_processes():
    text = text_of(view(BEFORE, AFTER))
    for part in ("KV budget 256 tokens", "running 3", "waiting 2", "25 of 100", "2 of 8", "100.0", "75%", "3 MiB"):
        assert part in text
    # There is no host memory, and the scheduler has been seen once.
    assert "host blocks" not in text
    assert [line.split()[-3] for line in text.splitlines() if line.startswith("scheduler")] == ["-"]


def test_an_unsound_engine_says_so():
    assert "block 3 is lost" in text_of(view(BEFORE, look(11.0, integrity_errors=["block 3 is lost"])))


def make_process(proc: Path, pid: int, arguments: list[str], name: str) -> None:
    directory = proc / str(pid)
    directory.mkdir()
    (directory / "cmdline").write_text("\0".join(arguments) + "\0")
    fields = ["S", *["0"] * 10, "150", "50", *["0"] * 20]
    (directory / "stat").write_text(f"{pid} ({name}) {' '.join(fields)}\n")
    (directory / "statm").write_text("100 20 0 0 0 0 0\n")


def test_processes_are_found_by_the_runtime_directory(tmp_path):
    def command(worker, directory):
        return ["python", "-m", f"zipage.workers.{worker}", directory]

    make_process(tmp_path, 12, command("decode", "/tmp/zipage-a"), "a (name) of two")
    make_process(tmp_path, 11, command("scheduler", "/tmp/zipage-a"), "python")
    make_process(tmp_path, 13, command("decode", "/tmp/zipage-ab"), "python")
    make_process(tmp_path, 14, ["python", "-m", "other", "/tmp/zipage-a"], "python")
    (tmp_path / "15").mkdir()
    for pid, log in ((16, "compression.log"), (17, "compression.spare.log")):
        make_process(tmp_path, pid, command("compression", "/tmp/zipage-a"), "python")
        (tmp_path / f"{pid}/fd").mkdir()
        (tmp_path / f"{pid}/fd/1").symlink_to(f"/tmp/zipage-a/{log}")
    found = engine_processes("ipc:///tmp/zipage-a/clients", tmp_path)
    assert [(process.pid, process.name) for process in found] == [
        (11, "scheduler"),
        (12, "decode"),
        (16, "compression"),
        (17, "spare compression"),
    ]
    assert found[1].cpu_seconds == 200 / os.sysconf("SC_CLK_TCK")
    assert found[1].resident_bytes == 20 * os.sysconf("SC_PAGE_SIZE")


def test_a_wrong_address_is_one_line(tmp_path):
    for address, message in ((f"ipc://{tmp_path}/nobody", "no engine listens"), ("nonsense", "an address is like")):
        result = CliRunner().invoke(main, [address])
        assert (result.exit_code, result.output.count("\n")) == (1, 1)
        assert message in result.output


def test_an_engine_that_ends_ends_the_view():
    with short_temporary_directory() as directory, FakeEngine(f"ipc://{directory}/clients") as engine:
        process = start_watching(engine.address)
        assert process.stdout.read(1)
        engine.stop()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("Error: ")
    assert engine.address in errors


def test_an_interrupt_ends_the_view_without_a_word():
    with short_temporary_directory() as directory, FakeEngine(f"ipc://{directory}/clients") as engine:
        process = start_watching(engine.address)
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def start_watching(address: str) -> subprocess.Popen[str]:
    """A view on a terminal, which is drawn again and again."""
    return subprocess.Popen(
        [sys.executable, "-m", "tools.watch_engine", address, "--interval", "0.05"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"FORCE_COLOR": "1", "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def llm():
    with LLM(kv_budget=64, kv_cache_gb=0.02, threads=1) as engine:
        yield engine


def test_one_view_of_a_real_engine(llm):
    with Client(llm.address) as client:
        stream = client.stream("abc")
        next(stream)
        result = CliRunner().invoke(main, [llm.address, "--once", "--interval", "0.05"], env={"COLUMNS": "120"})
        stream.close()
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.output.splitlines()]
    assert lines[0].startswith("reasoner-8m, KV budget 64 tokens, blocks of 16")
    workers = [line.split()[0] for line in lines if line.endswith("MiB")]
    assert sorted(workers) == ["compression", "decode", "scheduler", "tokenizer"]
