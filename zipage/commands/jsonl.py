"""Prompts from a JSONL file, results to a JSONL file that a later run completes.

An input line is an object with exactly one of `prompt`, `prompt_token_ids` and `messages`, optionally an `id` (text or
a number; else the line's number is its id) and any field of `SamplingParams`. Empty lines are skipped.

An output line is `{"id", "prompt_tokens", "completions"}`, or `{"id", "error"}` where the engine refused the request.
Lines are written as requests finish. A later run with the same files skips every id with a result and tries the
others again; a last line that a crash cut short is dropped, as are lines with an error.
"""

import contextlib
import difflib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from zipage.errors import InvalidRequestError
from zipage.messages import GenerationRequest, PositionLogprobs, TokenLogprob
from zipage.results import Completion, RequestOutput, time_per_output_token, time_to_first_token
from zipage.sampling_params import SamplingParams, sampling_params_from

LineId = str | int

_PROMPT_KEYS = ("prompt", "prompt_token_ids", "messages")
_KEYS = ("id", *_PROMPT_KEYS, *SamplingParams.__struct_fields__)
# How every output line begins, so that one that was cut short can be told from other text.
_LINE_START = b'{"id":'


@dataclass(frozen=True)
class InputOptions:
    """What the command line says about every line.

    Attributes:
        sampling: sampling fields of lines that do not set them.
        chat: send `prompt` lines as chat messages.
        system: a system message for conversations that have none.
    """

    sampling: Mapping[str, Any]
    chat: bool
    system: str | None


@dataclass(frozen=True)
class InputLine:
    """One request of the input file; `request.request_id` names the line."""

    id: LineId
    request: GenerationRequest


def as_messages(prompt: str, system: str | None) -> list[dict[str, Any]]:
    """A conversation of one question."""
    return with_system([{"role": "user", "content": prompt}], system)


def with_system(messages: list[dict[str, Any]], system: str | None) -> list[dict[str, Any]]:
    """Put a system message first, unless the conversation has one."""
    if system is None or any(message.get("role") == "system" for message in messages):
        return messages
    return [{"role": "system", "content": system}, *messages]


def parse_line(text: bytes, number: int, options: InputOptions) -> InputLine:
    """Read one line of the input.

    Raises:
        InvalidRequestError: not such an object, an unknown key, or a value of a wrong type or outside its range.
    """
    try:
        fields = msgspec.json.decode(text, type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"not a JSON object: {error}") from None
    for key in fields:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            raise InvalidRequestError(f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    line_id = fields.pop("id", number)
    if not isinstance(line_id, str | int) or isinstance(line_id, bool):
        raise InvalidRequestError(f"id must be text or a whole number, not {line_id!r}")
    prompt = {key: fields.pop(key) for key in _PROMPT_KEYS if key in fields}
    if len(prompt) != 1:
        raise InvalidRequestError(f"exactly one of {', '.join(_PROMPT_KEYS)} must be given, not {len(prompt)}")
    sampling = sampling_params_from({**options.sampling, **fields})
    try:
        request = msgspec.convert({"request_id": f"line {number}", **prompt}, GenerationRequest)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(str(error)) from None
    return InputLine(line_id, msgspec.structs.replace(_as_chat(request, options), sampling=sampling))


def _as_chat(request: GenerationRequest, options: InputOptions) -> GenerationRequest:
    if request.messages is not None:
        return msgspec.structs.replace(request, messages=with_system(request.messages, options.system))
    if request.prompt is not None and options.chat:
        return msgspec.structs.replace(request, prompt=None, messages=as_messages(request.prompt, options.system))
    return request


class InputFile:
    """A JSONL input that can be read again and again, line by line; a context manager."""

    def __init__(self, path: Path, options: InputOptions) -> None:
        """Open it; what cannot be rewound, such as a pipe, is copied to a temporary file.

        Raises:
            OSError: the file cannot be opened.
        """
        self._path = path
        self._options = options
        self._resources = contextlib.ExitStack()
        self._file: IO[bytes] = self._resources.enter_context(path.open("rb"))
        if not self._file.seekable():
            copy = self._resources.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(self._file, copy)
            self._file = copy

    def __iter__(self) -> Iterator[InputLine]:
        """Yield every line; raises InvalidRequestError with the line's number at a bad one."""
        for number, text in self._texts():
            yield self._parse(number, text)

    def check(self) -> set[LineId]:
        """Read the whole file and return its ids.

        Raises:
            InvalidRequestError: a line is bad, or its id is that of an earlier line.
        """
        ids: dict[LineId, int] = {}
        errors = []
        for number, text in self._texts():
            try:
                line_id = self._parse(number, text).id
                if line_id in ids:
                    raise InvalidRequestError(
                        f"{self._path} line {number}: id {line_id!r} is that of line {ids[line_id]}"
                    )
                ids[line_id] = number
            except InvalidRequestError as error:
                errors.append(error)
        if errors:
            others = len(errors) - 1
            more = f" (and {others} more bad line{'s' if others > 1 else ''})" if others else ""
            raise InvalidRequestError(f"{errors[0]}{more}")
        return set(ids)

    def __enter__(self) -> "InputFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def _texts(self) -> Iterator[tuple[int, bytes]]:
        self._file.seek(0)
        return ((number, text) for number, text in enumerate(self._file, 1) if text.strip())

    def _parse(self, number: int, text: bytes) -> InputLine:
        try:
            return parse_line(text, number, self._options)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{self._path} line {number}: {error}", error.field) from None


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
    if any(completion.finish_reason == "abort" for completion in result.completions):
        return "the engine ended the request before it was done"
    return None


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
        fields["peak_blocks"] = metrics.peak_blocks
    return fields


def _logprob_fields(position: PositionLogprobs) -> dict[str, Any]:
    def fields(token: TokenLogprob) -> dict[str, Any]:
        return {"token_id": token.token_id, "text": token.text, "logprob": token.logprob}

    return {**fields(position.sampled), "top": [fields(token) for token in position.top]}
