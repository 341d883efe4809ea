"""Prompts from a JSONL file.

An input line is an object with exactly one of `prompt`, `prompt_token_ids` and `messages`, optionally an `id` (text or
a number; else the line's number is its id) and any field of `SamplingParams`. Empty lines are skipped.
"""

import contextlib
import difflib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from zipage.errors import InvalidRequestError
from zipage.messages import GenerationRequest
from zipage.sampling_params import SamplingParams, sampling_params_from

LineId = str | int

_PROMPT_KEYS = ("prompt", "prompt_token_ids", "messages")
_KEYS = ("id", *_PROMPT_KEYS, *SamplingParams.__struct_fields__)


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


@contextlib.contextmanager
def _open_seekable(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        if file.seekable():
            yield file
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy)
            yield copy


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
        self._file = self._resources.enter_context(_open_seekable(path))

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
