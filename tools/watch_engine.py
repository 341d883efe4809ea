"""A live view of a running engine: requests, pool, speeds and processes.

    python -m tools.watch_engine ipc:///tmp/zipage-.../clients
    python -m tools.watch_engine ADDRESS --once

`zipage serve` prints the address. Speeds are means over the time between two looks; Ctrl-C ends the view.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from tools.process_usage import ProcessUsage, engine_processes
from zipage import Client, EngineError
from zipage.messages import Status

# An engine that is busy with a long step still answers: its scheduler has nothing to do with the device.
_TIMEOUT_SECONDS = 5.0
_BAR_WIDTH = 40
_RATES = {
    "output tokens/s": "output_tokens",
    "prompt tokens/s": "prompt_tokens",
    "steps/s": "steps",
    "compressions/s": "compressions",
    "preemptions/s": "preemptions",
}
_TOTALS = ("steps", "output_tokens", "prompt_tokens", "cached_tokens", "compressions", "shadow_compressions")
_TOTALS_OF_TROUBLE = ("preemptions", "swaps", "failed_jobs")


@dataclass(frozen=True)
class Look:
    """An engine at one time, in seconds of CLOCK_MONOTONIC."""

    time: float
    status: Status
    processes: list[ProcessUsage]


def looks(client: Client, interval: float) -> Iterator[Look]:
    """Look at an engine now, and again and again after `interval` seconds.

    Raises:
        EngineError: the engine has ended or does not answer.
    """
    while True:
        status = client.status()
        yield Look(time.monotonic(), status, engine_processes(client.address))
        time.sleep(interval)


def rates(before: Look, after: Look) -> dict[str, float]:
    """Growth per second of the engine's counters between two looks, by what it is called."""
    seconds = after.time - before.time
    return {
        name: (getattr(after.status, field) - getattr(before.status, field)) / seconds for name, field in _RATES.items()
    }


def processor_shares(before: Look, after: Look) -> dict[int, float]:
    """Processor cores that each process used between two looks, by process id; those seen twice."""
    earlier = {process.pid: process.cpu_seconds for process in before.processes}
    seconds = after.time - before.time
    return {
        process.pid: (process.cpu_seconds - earlier[process.pid]) / seconds
        for process in after.processes
        if process.pid in earlier
    }


def view(before: Look, after: Look) -> RenderableType:
    """What is shown of two looks that follow each other."""
    status = after.status
    parts: list[RenderableType] = [_heading(status), "", _requests(status), "", _memory(status), ""]
    parts.append(Columns([_rates(before, after), _totals(status)], padding=(0, 6)))
    if after.processes:
        parts += ["", _processes(after.processes, processor_shares(before, after))]
    parts += [f"[bold red]{error}" for error in status.integrity_errors]
    return Group(*parts)


def _heading(status: Status) -> str:
    budget = f"KV budget {status.kv_budget} tokens" if status.kv_budget else "no KV budget"
    return f"[bold]{Path(status.model).name}[/], {budget}, blocks of {status.block_size}"


def _requests(status: Status) -> Table:
    table = Table.grid(padding=(0, 4))
    counts = ("running", "waiting", "compressing", "swapped")
    table.add_row(*(f"{name} [bold]{getattr(status, name)}[/]" for name in counts))
    return table


def _memory(status: Status) -> Table:
    table = Table.grid(padding=(0, 2))
    parts = (
        ("KV blocks", status.blocks_used, status.blocks_total, f", at most {status.blocks_peak} so far"),
        ("query slots", status.slots_used, status.slots_total, ""),
        ("host blocks", status.host_blocks_used, status.host_blocks_total, ""),
    )
    for name, used, total, more in parts:
        if total:
            table.add_row(name, ProgressBar(total, used, width=_BAR_WIDTH), f"{used} of {total}{more}")
    return table


def _rates(before: Look, after: Look) -> Table:
    return _numbers({name: f"{value:.1f}" for name, value in rates(before, after).items()})


def _totals(status: Status) -> Table:
    return _numbers({name.replace("_", " "): str(getattr(status, name)) for name in _TOTALS + _TOTALS_OF_TROUBLE})


def _numbers(values: dict[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for name, value in values.items():
        table.add_row(name, value)
    return table


def _processes(processes: list[ProcessUsage], shares: dict[int, float]) -> Table:
    table = Table("process", box=None, padding=(0, 4, 0, 0))
    for name in ("pid", "CPU", "memory"):
        table.add_column(name, justify="right")
    for process in processes:
        share = f"{100 * shares[process.pid]:.0f}%" if process.pid in shares else "-"
        table.add_row(process.name, str(process.pid), share, f"{process.resident_bytes / 2**20:.0f} MiB")
    return table


def _show(client: Client, console: Console, interval: float, once: bool) -> None:
    found = looks(client, interval)
    before, after = next(found), next(found)
    if once:
        console.print(view(before, after))
        return
    with Live(view(before, after), console=console, auto_refresh=False, screen=console.is_terminal) as live:
        for look in found:
            before, after = after, look
            live.update(view(before, after), refresh=True)


@click.command()
@click.argument("address")
@click.option("--interval", type=click.FloatRange(0.05), default=1.0, show_default=True, help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Print one view, measured over one interval, and end.")
def main(address: str, interval: float, once: bool) -> None:
    """Watch the engine at ADDRESS."""
    try:
        with contextlib.suppress(KeyboardInterrupt), Client(address, timeout=_TIMEOUT_SECONDS) as client:
            _show(client, Console(highlight=False), interval, once)
    except EngineError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
