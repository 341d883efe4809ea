"""docs/protocol.md names every field of the client's messages as it is, and its examples are true."""

import json
import math
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from fake_engine import QUEUE_FULL, FakeEngine

from zipage import engine_messages, messages
from zipage.errors import InvalidRequestError
from zipage.messages import (
    Abort,
    Alive,
    ClientMessage,
    EngineMessage,
    GenerationRequest,
    Output,
    PositionLogprobs,
    Refused,
    RequestMetrics,
    Status,
    StatusQuery,
    Submit,
    TokenLogprob,
)
from zipage.results import Completion
from zipage.sampling_params import SamplingParams

DOCUMENT = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text(encoding="utf-8")
FROM_CLIENTS = [Submit, GenerationRequest, SamplingParams, Abort, StatusQuery]
FROM_ENGINE = [Output, PositionLogprobs, TokenLogprob, RequestMetrics, Refused, Status, Alive]
LINKS = {
    "clients": (messages.ClientMessage, messages.EngineMessage),
    "tokenizer": (engine_messages.TokenizerMessage, engine_messages.SchedulerMessage),
    "decode": (engine_messages.DecodeWorkerMessage, engine_messages.DecodeCommand),
    "compression": (engine_messages.CompressionWorkerMessage, engine_messages.CompressionCommand),
    "control": (engine_messages.ChildMessage, None),
}


def table(heading: str) -> list[dict[str, str]]:
    """The rows of the first table under a heading, by column."""
    section = re.search(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert section is not None, f"no section {heading}"
    lines = [line for line in section[1].splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in rows]


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


def type_name(kind: Any) -> str:
    """A field's type in the words of the document."""
    if kind is type(None):
        return "nil"
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(type_name, get_args(kind)))
    if get_origin(kind) in (list, tuple):
        return f"[{type_name(get_args(kind)[0])}]"
    if kind == dict[str, Any]:
        return "map"
    if get_origin(kind) is dict:
        key, value = map(type_name, get_args(kind))
        return f"{{{key}: {value}}}"
    return kind.__name__


def default_value(field: msgspec.structs.FieldInfo) -> Any:
    """The default as plain data, or the text that the document has where there is none."""
    if field.required:
        return "required"
    default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return json.loads(msgspec.json.encode(default))


def written_value(cell: str) -> Any:
    return cell if cell == "required" else json.loads(cell.strip("`").replace("nil", "null"))


def ranges() -> list[tuple[str, str, float, float, str]]:
    """Field, opening bracket, low, high and closing bracket of every range of `SamplingParams`."""
    found = []
    for row in table("SamplingParams"):
        if row["range"]:
            low, high = row["range"][1:-1].split(", ")
            found.append((row["field"].strip("`"), row["range"][0], bound(low), bound(high), row["range"][-1]))
    return found


def bound(text: str) -> float:
    return math.inf if text == "inf" else int(text)


def params_with(field: str, number: float) -> SamplingParams:
    value: Any = {0: number} if field == "logit_bias" else number
    return SamplingParams(**{field: value})


@pytest.mark.parametrize("struct", FROM_CLIENTS + FROM_ENGINE, ids=lambda struct: struct.__name__)
def test_every_field_is_named_in_order_with_its_type(struct: type[msgspec.Struct]) -> None:
    hints = get_type_hints(struct)
    written = [(row["field"], row["type"]) for row in table(struct.__name__)]
    assert written == [(f"`{name}`", type_name(hints[name])) for name in struct.__struct_fields__]


@pytest.mark.parametrize("struct", FROM_CLIENTS, ids=lambda struct: struct.__name__)
def test_every_default_is_the_structs(struct: type[msgspec.Struct]) -> None:
    written = [written_value(row["default"]) for row in table(struct.__name__)]
    assert written == [default_value(field) for field in msgspec.structs.fields(struct)]


def test_every_struct_of_the_client_link_is_documented() -> None:
    _, components = msgspec.json.schema_components([ClientMessage, EngineMessage])
    assert set(components) == {struct.__name__ for struct in FROM_CLIENTS + FROM_ENGINE}


def test_every_number_has_a_range() -> None:
    numbers = {
        name for name, hint in get_type_hints(SamplingParams).items() if type_name(hint).startswith(("int", "fl"))
    }
    assert {field for field, *_ in ranges()} == numbers | {"logit_bias"}


@pytest.mark.parametrize("field, left, low, high, right", ranges())
def test_ranges_are_those_that_are_checked(field: str, left: str, low: float, high: float, right: str) -> None:
    inside = [low if left == "[" else low + 1e-9, *([high] if right == "]" else [])]
    outside = [low - 1 if left == "[" else low, high + 1 if right == "]" else high]
    for number in inside:
        params_with(field, number)
    for number in outside:
        with pytest.raises(InvalidRequestError) as refusal:
            params_with(field, number)
        assert refusal.value.field == field


def test_every_finish_reason_is_explained() -> None:
    [meaning] = [row["meaning"] for row in table("Output") if row["field"] == "`finish_reason`"]
    _, listed = meaning.split("last Output of a completion")
    named = re.findall(r"`(\w+)`", listed)
    [bullet] = re.findall(r"^\* \*\*Finish reasons\.\*\*(.*?)(?=^\*)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert re.findall(r"`(\w+)`: ", bullet) == named
    for docstring in (Output.__doc__, Completion.__doc__):
        assert docstring is not None
        assert set(named) <= set(re.findall(r"`(\w+)`", docstring))


@pytest.mark.parametrize("link", LINKS)
def test_internal_links_carry_their_unions(link: str) -> None:
    row = next(row for row in table("Links inside the engine") if row["link"] == f"`{link}`")
    for column, union in zip(("to the one that binds", "back"), LINKS[link], strict=True):
        members = () if union is None else get_args(union) or (union,)
        assert re.findall(r"`(\w+)`", row[column]) == [member.__name__ for member in members]


def test_the_worked_example_is_what_is_sent() -> None:
    submit, _ = code_blocks("json")
    [dump] = code_blocks("hex")
    frame = bytes.fromhex("".join(re.findall("^ *((?:[0-9a-f]{2} )+)", dump, re.MULTILINE)))
    assert msgspec.msgpack.decode(frame) == json.loads(submit)
    assert frame == msgspec.msgpack.encode(json.loads(submit))
    message = msgspec.msgpack.decode(frame, type=ClientMessage)
    assert isinstance(message, Submit)
    assert message.requests[0].stream


def test_the_worked_example_is_answered_with_whole_outputs() -> None:
    _, answers = code_blocks("json")
    outputs = [json.loads(line) for line in answers.splitlines()]
    for output in outputs:
        assert msgspec.to_builtins(msgspec.convert(output, EngineMessage)) == output
    assert [output["finish_reason"] for output in outputs] == [None, None, "length"]
    assert outputs[-1]["metrics"][4] == sum(len(output["token_ids"]) for output in outputs)


@pytest.mark.parametrize(
    "prompt, code, out, err",
    [
        ("a b", 0, "USER:A B\nends with stop\n", ""),
        ("deadline b", 0, "USER:DEADLINE B\nends with deadline\n", ""),
        ("refuse", 1, "", "refused: prompt must be shorter\n"),
        ("full", 1, "", f"refused: {QUEUE_FULL}\n"),
        # Goes on at the first status query, which the client sends after a second of silence.
        ("hang", 0, "HANG\nends with length\n", ""),
    ],
)
def test_the_example_client_runs(tmp_path: Path, prompt: str, code: int, out: str, err: str) -> None:
    [source] = code_blocks("python")
    assert "zipage" not in source
    program = tmp_path / "stream.py"
    program.write_text(source, encoding="utf-8")
    with FakeEngine(f"ipc://{tmp_path}/engine") as engine:
        engine.release_at = 1
        command = [sys.executable, str(program), engine.address, prompt]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (code, out, err)
    assert engine.requests[0].stream
