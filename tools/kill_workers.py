"""What an engine makes of workers that are killed under load: whether all answers are right, and how long it takes.

    python -m tools.kill_workers --kills 20 --option device=cuda --option mps=on --output result.json
    python -m tools.kill_workers --kills 3 --worker decode --output result.json

Tasks of the bundled model, whose answers are known to the last character, run all the time; three of four are under a
budget, the others need no compression. Again and again a worker gets SIGKILL; the next kill comes when compressions
have gone on for `--rest` seconds; a spare (zipage/spares.py) that has had less time than its imports take is told to
go in the middle of them. *Back* is the time from the kill to the next finished compression; a *pause* is the longest
time around a kill in which no step was planned.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from tools.bench_runs import parse_options
from tools.bundled_task import UNDER_A_BUDGET, samples
from zipage import Client, SamplingParams
from zipage.llm import make_config
from zipage.messages import Status
from zipage.supervisor import Supervisor

_CHARACTERS = 1600
_POLL_SECONDS = 0.005
_LONGEST_WAIT_SECONDS = 120.0


@dataclass
class Answers:
    """How the requests of a run have ended."""

    right: int = 0
    wrong: int = 0
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Kill:
    """What one kill has led to, in seconds; `restarted` are the processes that were started again."""

    back: float
    pause: float
    restarted: dict[str, int]


class Load:
    """Keeps an engine busy from a thread of its own until it is told to stop."""

    def __init__(self, supervisor: Supervisor, batch: int) -> None:
        self.answers = Answers()
        self._supervisor = supervisor
        self._batch = batch
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Let what has been asked be answered."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        # Those without a budget go on decoding while nobody compresses the others.
        params = [
            SamplingParams(temperature=0.0, max_tokens=3000, kv_budget=None if index % 4 else 0)
            for index in range(self._batch)
        ]
        seed = 0
        try:
            with Client(self._supervisor.address, check=self._supervisor.check) as client:
                while not self._stop.is_set():
                    tasks = samples(self._batch, _CHARACTERS, seed, UNDER_A_BUDGET)
                    results = client.chat([task.messages for task in tasks], params)
                    right = sum(result.text == task.text for result, task in zip(results, tasks, strict=True))
                    self.answers.right += right
                    self.answers.wrong += self._batch - right
                    seed += 1
        except Exception as error:
            self.answers.errors.append(f"{type(error).__name__}: {error}")


def kill_once(supervisor: Supervisor, client: Client, worker: str) -> Kill:
    """Kill a worker and wait until a compression that began after it is done."""
    before, status = supervisor.restarts, client.status()
    killed = time.monotonic()
    os.kill(supervisor.processes[worker], signal.SIGKILL)
    steps, last_step, pause = status.steps, killed, 0.0
    while True:
        time.sleep(_POLL_SECONDS)
        now, latest = time.monotonic(), client.status()
        pause = max(pause, now - last_step)
        if latest.steps > steps:
            steps, last_step = latest.steps, now
        is_back = latest.worker_restarts > status.worker_restarts and latest.compressions > status.compressions
        if is_back:
            restarted = {
                name: count - before[name] for name, count in supervisor.restarts.items() if count > before[name]
            }
            return Kill(now - killed, pause, restarted)
        if now - killed > _LONGEST_WAIT_SECONDS:
            raise click.ClickException(f"no compression has finished for {_LONGEST_WAIT_SECONDS:g} s after a kill")
        if latest.worker_restarts == status.worker_restarts:
            # What the old worker has finished before its end does not show that the new one works.
            status = latest


def gpu_memory_mib() -> int | None:
    """Memory in use on the first GPU that CUDA shows, by all processes; None where there is no GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = [program, "--query-gpu=memory.used", "--format=csv,noheader,nounits", f"--id={gpu}"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


@click.command()
@click.option("--kills", default=20, show_default=True, help="How often.")
@click.option("--worker", type=click.Choice(["compression", "decode", "mps"]), default="compression", show_default=True)
@click.option("--batch", default=64, show_default=True, help="Requests at a time.")
@click.option("--rest", default=0.7, show_default=True, help="Undisturbed seconds before each kill.")
@click.option("--option", "options", multiple=True, help="FIELD=JSON of the engine's config.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
def main(kills: int, worker: str, batch: int, rest: float, options: tuple[str, ...], output: Path) -> None:
    """Kill workers of an engine under load."""
    fields = {"kv_budget": 448, "block_size": 64, "max_num_seqs": batch, "kv_cache_gb": 1.0, "dtype": "float32"}
    config = make_config(None, fields | parse_options(options))
    events: list[Kill] = []
    with Supervisor.start(config) as supervisor, Client(supervisor.address, check=supervisor.check) as client:
        used, load = gpu_memory_mib(), Load(supervisor, batch)

        def write() -> dict[str, Any]:
            result = _result(supervisor, client.status(), load.answers, events)
            result["gpu_memory_mib"] = {"before": used, "after": gpu_memory_mib()}
            output.write_text(json.dumps(result, indent=1) + "\n")
            return result

        for _ in range(kills):
            time.sleep(rest)
            events.append(kill_once(supervisor, client, worker))
            # A run that is cut off leaves what it has seen.
            write()
        load.finish()
        _print(write(), events)


def _result(supervisor: Supervisor, status: Status, answers: Answers, events: list[Kill]) -> dict[str, Any]:
    counters = ("worker_restarts", "failed_jobs", "preemptions", "compressions", "integrity_errors")
    return {
        "command": shlex.join(["python", "-m", "tools.kill_workers", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {package: version(package) for package in ("zipage", "torch")},
        "mps": supervisor.mps,
        "answers": asdict(answers),
        "restarts": supervisor.restarts,
        "counters": {name: getattr(status, name) for name in counters},
        "kills": [asdict(event) for event in events],
    }


def _print(result: dict[str, Any], events: list[Kill]) -> None:
    answers, memory = result["answers"], result["gpu_memory_mib"]
    backs, pauses = [event.back for event in events], [event.pause for event in events]
    click.echo(
        f"MPS {'on' if result['mps'] else 'off'}: {answers['right']} answers right, {answers['wrong']} wrong, errors "
        f"{answers['errors']}; back after {min(backs):.2f} to {max(backs):.2f} s, decoding paused {min(pauses):.2f} to "
        f"{max(pauses):.2f} s; restarts {result['restarts']}; memory {memory['before']} -> {memory['after']} MiB; "
        f"{result['counters']}"
    )


if __name__ == "__main__":
    main()
