"""What one process did and when: spans and counters in a file of its own, for `tools.profile_pipeline`.

Times are nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share. A file is JSON lines, each a
`TraceRecord`, the header first. A record costs about a microsecond; a step writes a few of them in each process.
"""

import os
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from zipage.errors import ConfigError

now = time.monotonic_ns

# Records that are kept before they are written: few enough that writing them delays no step for long.
_BUFFERED_RECORDS = 256
_LONGEST_BUFFERED_NS = 500_000_000


class TraceHeader(msgspec.Struct, frozen=True, array_like=True, tag="process", gc=False):
    """Which process the file is about, and whether it is a client of a CUDA MPS daemon."""

    process: str
    pid: int
    mps: bool = False


class Span(msgspec.Struct, frozen=True, array_like=True, tag="span", gc=False):
    """Something that took time in a lane of the process: `start` and `end` in nanoseconds.

    Spans of a lane do not overlap, or one lies inside the other.
    """

    lane: str
    name: str
    start: int
    end: int
    args: dict[str, Any] = {}


class CounterSample(msgspec.Struct, frozen=True, array_like=True, tag="counter", gc=False):
    """Numbers by name as they were at `time`, in nanoseconds."""

    name: str
    time: int
    values: dict[str, float]


TraceRecord = TraceHeader | Span | CounterSample


class Tracer:
    """Writes the records of one process; does nothing where tracing is off. May be used by several threads.

    Attributes:
        enabled: whether records are written; what is costly to find out is not worth finding out otherwise.
    """

    def __init__(self, directory: str | None, process: str, mps: bool = False) -> None:
        """Args: directory: exists, `None` is tracing off; process: whose spans these are; mps: of the header."""
        self.enabled = directory is not None
        self._lock = threading.Lock()
        self._records: list[TraceRecord] = []
        self._last_write = now()
        self._encoder = msgspec.json.Encoder()
        if directory is not None:
            self._file = open(Path(directory) / f"{process}-{os.getpid()}.jsonl", "wb", buffering=0)  # noqa: SIM115
            self._add(TraceHeader(process, os.getpid(), mps), self._last_write)

    def span(self, lane: str, name: str, start: int, end: int, **args: Any) -> None:
        """Record what went on in a lane from `start` to `end`."""
        if self.enabled:
            self._add(Span(lane, name, start, end, args), end)

    def counter(self, name: str, time: int, **values: float) -> None:
        """Record numbers as they are at a time."""
        if self.enabled:
            self._add(CounterSample(name, time, values), time)

    def flush(self) -> None:
        """Write what is buffered."""
        if self.enabled:
            with self._lock:
                self._write()

    def _add(self, record: TraceRecord, time: int) -> None:
        with self._lock:
            self._records.append(record)
            if len(self._records) >= _BUFFERED_RECORDS or time - self._last_write > _LONGEST_BUFFERED_NS:
                self._write()
                self._last_write = time

    def _write(self) -> None:
        self._file.write(self._encoder.encode_lines(self._records))
        self._records.clear()


TRACING_OFF = Tracer(None, "")


def prepare_trace_directory(directory: str | os.PathLike[str]) -> str:
    """Make the directory for traces where it is missing; returns its absolute path.

    Raises:
        ConfigError: it cannot be made or written to.
    """
    path = Path(directory).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"trace must be a directory that can be written to, not {path}: {error.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"trace must be a directory that can be written to, not {path}")
    return str(path)


def read_trace(path: Path) -> tuple[TraceHeader, list[Span], list[CounterSample]]:
    """The records of one file; a line that a killed process has left unfinished at the end is dropped.

    Raises:
        ValueError: the file is no trace.
    """
    lines = path.read_bytes().split(b"\n")[:-1]
    decoder = msgspec.json.Decoder(TraceRecord)
    records = [decoder.decode(line) for line in lines]
    if not records or not isinstance(records[0], TraceHeader):
        raise ValueError(f"{path} is no trace of a zipage process")
    spans = [record for record in records if isinstance(record, Span)]
    return records[0], spans, [record for record in records if isinstance(record, CounterSample)]
