"""Real engines that are started wrongly, killed, interrupted: one clear line, the right exit code, nothing left."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from process_helpers import children_of, leftovers, running, short_temporary_directory, wait_until
from tiny_models import tiny_checkpoint

from tools.bundled_task import samples
from zipage import LLM, EngineError, SamplingParams

WORKERS = ("tokenizer", "scheduler", "decode", "compression")
OPTIONS = ("--kv-cache-gb", "0.05", "--threads", "1")
ENDLESS = ("--max-tokens", "8000", "--ignore-eos", "--kv-budget", "64")


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where this test's engines have their runtime directories; nothing may be left there."""
    # pytest's own folder is not to be made in there.
    tmp_path_factory.getbasetemp()
    with short_temporary_directory() as directory:
        monkeypatch.setenv("TMPDIR", str(directory))
        monkeypatch.setattr("tempfile.tempdir", str(directory))
        shared_memory = set(os.listdir("/dev/shm"))
        yield directory
        assert wait_until(lambda: not leftovers(directory)), leftovers(directory)
        assert set(os.listdir("/dev/shm")) <= shared_memory


def start_command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "zipage", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_command(*arguments: str) -> tuple[int, str, str]:
    process = start_command(*arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def start_generating() -> subprocess.Popen[str]:
    """An engine in the middle of an endless answer."""
    (task,) = samples(1, 300, seed=0)
    process = start_command("run", "bundled", task.prompt, *ENDLESS, *OPTIONS)
    assert process.stdout is not None
    assert process.stdout.read(40)
    return process


def test_a_fresh_run_answers_exactly(temporary: Path) -> None:
    (task,) = samples(1, 150, seed=0)
    code, out, err = run_command("run", "bundled", task.prompt, *OPTIONS, "--kv-budget", "140")
    assert (code, out) == (0, task.text + "\n")
    assert "140 -> 144 tokens" in err
    assert "compressions" in err
    assert "TTFT" in err


def test_without_arguments_the_bundled_model_shows_a_task(temporary: Path) -> None:
    code, out, err = run_command("run")
    assert code == 0
    assert out.startswith("<think>\n")
    assert "The answer is exact, to the last character." in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(temporary: Path, number: signal.Signals) -> None:
    process = start_generating()
    children = children_of(process.pid)
    assert len(children) == 4
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert not running(children)


def test_sigkill_of_the_supervisor_ends_everything(temporary: Path) -> None:
    process = start_generating()
    children = children_of(process.pid)
    process.kill()
    process.communicate(timeout=60)
    assert wait_until(lambda: not running(children))


@pytest.mark.parametrize("worker", ["tokenizer", "scheduler"])
def test_sigkill_of_a_worker_is_one_clear_error(temporary: Path, worker: str) -> None:
    process = start_generating()
    (victim,) = (pid for pid in children_of(process.pid) if f"zipage.workers.{worker}" in command_line(pid))
    os.kill(victim, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    errors = [line for line in err.splitlines() if line.startswith("zipage: error:")]
    assert errors == [f"zipage: error: {worker} worker ended with SIGKILL"]
    assert "Traceback" not in err


def test_a_worker_that_is_late_is_named(temporary: Path) -> None:
    code, _, err = run_command("run", "bundled", "abc", "--ready-timeout", "0.2")
    assert code == 1
    assert "not ready within 0.2 s" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--kv-cache-gb", "0.000001"), "raise kv_cache_gb"),
        (("--kv-budget", "16"), "kv_budget must be 0 or more than one block"),
        (("--scoring", "papers"), "scoring must start with one of"),
    ],
)
def test_options_that_do_not_fit_are_one_line(temporary: Path, arguments: tuple[str, ...], words: str) -> None:
    code, _, err = run_command("run", "bundled", "abc", *arguments)
    assert code != 0
    assert words in err
    assert "Traceback" not in err


def test_a_broken_checkpoint_is_one_line(temporary: Path, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "broken")
    (checkpoint / "model.safetensors").write_bytes(b"not a checkpoint")
    code, _, err = run_command("run", str(checkpoint), "hello")
    assert code == 1
    assert len([line for line in err.splitlines() if line.startswith("zipage: error:")]) == 1
    assert "Traceback" not in err


def test_an_engine_that_dies_raises_in_python(temporary: Path) -> None:
    llm = LLM(kv_cache_gb=0.05, threads=1)
    children = children_of(os.getpid())
    (scheduler,) = (pid for pid in children if "zipage.workers.scheduler" in command_line(pid))
    stream = llm.stream("abc", SamplingParams(temperature=0.0, ignore_eos=True))
    next(stream)
    os.kill(scheduler, signal.SIGKILL)
    with pytest.raises(EngineError, match="scheduler worker ended with SIGKILL"):
        list(stream)
    llm.shutdown()
    assert wait_until(lambda: not running(children))


def test_scheduler_and_supervisor_load_no_torch(temporary: Path) -> None:
    process = start_generating()
    loaded = {}
    for pid in (process.pid, *children_of(process.pid)):
        libraries = Path(f"/proc/{pid}/maps").read_text()
        name = next((name for name in WORKERS if f"zipage.workers.{name}" in command_line(pid)), "supervisor")
        loaded[name] = "libtorch" in libraries
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert loaded == {
        "supervisor": False,
        "tokenizer": False,
        "scheduler": False,
        "decode": True,
        "compression": True,
    }


def command_line(pid: int) -> str:
    return " ".join(psutil.Process(pid).cmdline())
