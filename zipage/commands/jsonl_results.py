"""Results to a JSONL file that a later run completes.

An output line is `{"id", "prompt_tokens", "completions"}`, or `{"id", "error"}` where the engine refused the request or
did not finish it. What a deadline has ended is a result. Lines are written as requests finish. A later run with the
same files skips every id with a result and tries the others again; a last line that a crash cut short is dropped, as
are lines with an error.
"""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Set
from pathlib import Path
from typing import IO, Any

import msgspec

from zipage.commands.endings import failure_of
from zipage.commands.jsonl import LineId
from zipage.errors import InvalidRequestError
from zipage.messages import PositionLogprobs, TokenLogprob
from zipage.results import Completion, RequestOutput, time_per_output_token, time_to_first_token

# How every output line begins, so that one that was cut short can be told from other text.
_LINE_START = b'{"id":'


class _Written(msgspec.Struct):
    """What must be known of a line that an earlier run has written."""

    id: LineId
    completions: list[Any] | None = None
    error: str | None = None


def finished_ids(path: Path) -> set[LineId]:
    """The ids with a result in the output of an earlier run; its other lines are removed from the file.

    Raises:
        InvalidRequestError: the file holds something else than such output; it is left alone.
        OSError: the file cannot be read or written.
    """
    if not path.is_file():
        return set()
    finished: set[LineId] = set()
    others: set[int] = set()
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            try:
                line_id = _finished_id(text)
            except ValueError:
                reason = "is not an output line of zipage run; choose another output file"
                raise InvalidRequestError(f"{path} line {number} {reason}") from None
            if line_id is None:
                others.add(number)
            else:
                finished.add(line_id)
    if others:
        _drop_lines(path, others)
    return finished


def _finished_id(text: bytes) -> LineId | None:
    """The id of a result; `None` for an error and for a line cut short. Raises ValueError for anything else."""
    if not text.endswith(b"\n") and (text.startswith(_LINE_START) or _LINE_START.startswith(text)):
        return None
    written = msgspec.json.decode(text, type=_Written)
    if written.completions is None and written.error is None:
        raise ValueError("neither a result nor an error")
    return None if written.completions is None else written.id


def _drop_lines(path: Path, numbers: Set[int]) -> None:
    """Replace a file by one without these lines, in one step."""
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}.", delete=False) as target:
        try:
            with path.open("rb") as source:
                target.writelines(text for number, text in enumerate(source, 1) if number not in numbers)
            target.close()
            shutil.copymode(path, target.name)
            os.replace(target.name, path)
        except BaseException:
            os.unlink(target.name)
            raise


@contextlib.contextmanager
def open_output(path: Path | None) -> Iterator[IO[bytes]]:
    """The output file, to append to; standard output where there is no path.

    Raises:
        OSError: the file cannot be opened.
    """
    if path is None:
        yield sys.stdout.buffer
        return
    with path.open("ab") as file:
        yield file


def write_result(file: IO[bytes], line_id: LineId, result: RequestOutput) -> str | None:
    """Write one line and flush it; returns the error that it carries, if it is not a result."""
    error = _error_of(result)
    if error is not None:
        line: dict[str, Any] = {"id": line_id, "error": error}
    else:
        completions = [_completion_fields(completion) for completion in result.completions]
        line = {"id": line_id, "prompt_tokens": result.prompt_tokens, "completions": completions}
    file.write(msgspec.json.encode(line) + b"\n")
    file.flush()
    return error


def _error_of(result: RequestOutput) -> str | None:
    if result.error is not None:
        return str(result.error)
    failures = (failure_of(completion.finish_reason) for completion in result.completions)
    return next((failure for failure in failures if failure is not None), None)


def _completion_fields(completion: Completion) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "index": completion.index,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
    }
    if completion.logprobs is not None:
        fields["logprobs"] = [_logprob_fields(position) for position in completion.logprobs]
    metrics = completion.metrics
    if metrics is not None:
        fields["ttft"] = time_to_first_token(metrics)
        fields["tpot"] = time_per_output_token(metrics)
        fields["compressions"] = metrics.compressions
        fields["preemptions"] = metrics.preemptions
        fields["swaps"] = metrics.swaps
        fields["peak_blocks"] = metrics.peak_blocks
    return fields


def _logprob_fields(position: PositionLogprobs) -> dict[str, Any]:
    def fields(token: TokenLogprob) -> dict[str, Any]:
        return {"token_id": token.token_id, "text": token.text, "logprob": token.logprob}

    return {**fields(position.sampled), "top": [fields(token) for token in position.top]}
