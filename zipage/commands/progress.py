"""The progress bar for long work."""

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from zipage.messages import Status

# How often the bar asks for the engine's status, and over how many answers the speed is measured.
STATUS_SECONDS = 0.5
_SPEED_SAMPLES = 10


class Speed:
    """Output tokens per second over the last few statuses."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SPEED_SAMPLES)

    def add(self, seconds: float, output_tokens: int) -> float:
        """Note a counter's value at a time; returns its mean growth per second."""
        self._samples.append((seconds, output_tokens))
        first_seconds, first_tokens = self._samples[0]
        elapsed = seconds - first_seconds
        return (output_tokens - first_tokens) / elapsed if elapsed > 0 else 0.0


class ProgressBar:
    """Finished requests, tokens/s, running requests and pool use on stderr; a context manager.

    It draws nothing where it is not to be shown or stderr is no terminal.
    """

    def __init__(self, total: int, *, shown: bool = True, console: Console | None = None) -> None:
        """`total` requests are to finish."""
        console = console or Console(stderr=True)
        columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[engine]}"), TimeElapsedColumn()]
        self._progress = Progress(
            *columns,
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._progress.add_task("", total=total, engine="")
        self._speed = Speed()

    def advance(self, _result: object = None) -> None:
        """One more request has finished."""
        self._progress.advance(self._task)

    def show_status(self, status: Status) -> None:
        """Show what the engine reports."""
        speed = self._speed.add(time.monotonic(), status.output_tokens)
        self._progress.update(self._task, engine=describe_load(status, speed))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Take the bar off the screen while something else is written to the terminal."""
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def describe_load(status: Status, tokens_per_second: float) -> str:
    """One line on what the engine is doing."""
    pool = 100 * status.blocks_used / status.blocks_total
    swapped = f"{status.swapped} swapped, " if status.swapped else ""
    queue = f"{status.running} running, {status.waiting} waiting, {swapped}"
    return f"{tokens_per_second:.0f} tokens/s, {queue}pool {pool:.0f}%"
