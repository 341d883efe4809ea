"""Input and output files of `zipage run`, without an engine."""

import os
import threading

import msgspec
import pytest
from fake_engine import metrics_of

from zipage.commands.jsonl import InputFile, InputOptions, parse_line
from zipage.commands.jsonl_results import finished_ids, write_result
from zipage.errors import InvalidRequestError
from zipage.messages import PositionLogprobs, TokenLogprob
from zipage.results import Completion, RequestOutput
from zipage.sampling_params import SamplingParams

PLAIN = InputOptions(sampling={}, chat=False, system=None)


def completion(text="x", finish_reason="stop", **changes):
    fields = {"index": 0, "text": text, "token_ids": [1], "logprobs": None, "finish_reason": finish_reason}
    return Completion(**fields | {"stop_reason": None, "metrics": metrics_of(3)} | changes)


@pytest.mark.parametrize(
    "line, field, value",
    [
        (b'{"prompt": "a"}', "prompt", "a"),
        (b'{"prompt_token_ids": [1, 2]}', "prompt_token_ids", [1, 2]),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "messages", [{"role": "user", "content": "a"}]),
    ],
)
def test_a_line_is_one_kind_of_prompt(line, field, value):
    parsed = parse_line(line, 7, PLAIN)
    assert getattr(parsed.request, field) == value
    assert parsed.id == 7


@pytest.mark.parametrize("text, line_id", [('"x"', "x"), ("12", 12)])
def test_a_line_may_bring_its_id(text, line_id):
    assert parse_line(b'{"id": %s, "prompt": "a"}' % text.encode(), 7, PLAIN).id == line_id


def test_sampling_fields_of_a_line_come_before_those_of_the_command_line():
    options = InputOptions(sampling={"max_tokens": 5, "temperature": 0.0}, chat=False, system=None)
    line = b'{"prompt": "a", "max_tokens": 9, "stop": "x", "logit_bias": {"3": 1}, "priority": -5, "deadline": 2.5}'
    sampling = parse_line(line, 1, options).request.sampling
    assert sampling == SamplingParams(
        max_tokens=9, temperature=0.0, stop=("x",), logit_bias={3: 1.0}, priority=-5, deadline=2.5
    )


def test_prompts_become_messages_with_chat():
    options = InputOptions(sampling={}, chat=True, system="Be kind.")
    system, user = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "a"}
    request = parse_line(b'{"prompt": "a"}', 1, options).request
    assert (request.prompt, request.messages) == (None, [system, user])
    other = {"role": "system", "content": "Be brief."}
    line = msgspec.json.encode({"messages": [other, user]})
    assert parse_line(line, 1, options).request.messages == [other, user]
    assert parse_line(b'{"prompt_token_ids": [1]}', 1, options).request.prompt_token_ids == [1]


@pytest.mark.parametrize(
    "line, message",
    [
        (b"{", "not a JSON object"),
        (b'"prompt"', "not a JSON object"),
        (b'{"prompt": "\xff"}', "not a JSON object"),
        pytest.param(b"[" * 100_000, "not a JSON object", id="nesting"),
        (b'{"prompt": "a", "temprature": 1}', "unknown key 'temprature'; did you mean 'temperature'"),
        (b'{"prompt": "a", "request_id": "x"}', "unknown key 'request_id'"),
        (b"{}", "exactly one of prompt, prompt_token_ids, messages must be given, not 0"),
        (b'{"prompt": "a", "messages": []}', "must be given, not 2"),
        (b'{"prompt": 5}', r"Expected `str \| null`, got `int` - at `\$.prompt`"),
        (b'{"prompt_token_ids": ["a"]}', r"prompt_token_ids"),
        (b'{"messages": "a"}', "messages"),
        (b'{"prompt": "a", "id": true}', "id must be text or a whole number, not True"),
        (b'{"prompt": "a", "id": 1.5}', "id must be text or a whole number, not 1.5"),
        (b'{"prompt": "a", "top_p": 2}', r"top_p must be in \(0, 1\], not 2"),
        (b'{"prompt": "a", "n": "two"}', "Expected `int`, got `str`"),
        (b'{"prompt": "a", "priority": 101}', r"priority must be in \[-100, 100\], not 101"),
        (b'{"prompt": "a", "priority": 0.5}', r"Expected `int`, got `float` - at `\$.priority`"),
        (b'{"prompt": "a", "deadline": 0}', r"deadline must be in \(0, inf\), not 0"),
        (b'{"prompt": "a", "deadline": "soon"}', r"Expected `float \| null`, got `str` - at `\$.deadline`"),
    ],
)
def test_a_bad_line_is_refused(line, message):
    with pytest.raises(InvalidRequestError, match=message):
        parse_line(line, 1, PLAIN)


def test_an_input_file_is_read_line_by_line_again_and_again(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "a"}\n\n  \n{"prompt": "b", "id": "x"}')
    with InputFile(path, PLAIN) as lines:
        assert lines.check() == {1, "x"}
        for _ in range(2):
            assert [(line.id, line.request.prompt) for line in lines] == [(1, "a"), ("x", "b")]
            assert [line.request.request_id for line in lines] == ["line 1", "line 4"]


def test_a_pipe_is_read_like_a_file(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=('{"prompt": "a"}\n',))
    writer.start()
    with InputFile(path, PLAIN) as lines:
        assert lines.check() == {1}
        assert [line.request.prompt for line in lines] == ["a"]
    writer.join()


def test_a_bad_file_names_the_line_and_counts_the_others(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": 1}\n{"promt": "a"}\n')
    with InputFile(path, PLAIN) as lines:
        with pytest.raises(InvalidRequestError, match=r"in.jsonl line 2: .*\(and 1 more bad line\)"):
            lines.check()
        with pytest.raises(InvalidRequestError, match=r"in.jsonl line 2: "):
            list(lines)


@pytest.mark.parametrize(
    "lines, message",
    [
        (['{"id": "x", "prompt": "a"}', '{"id": "x", "prompt": "b"}'], "line 2: id 'x' is that of line 1"),
        (['{"id": 2, "prompt": "a"}', '{"prompt": "b"}'], "line 2: id 2 is that of line 1"),
    ],
)
def test_an_id_must_not_come_twice(tmp_path, lines, message):
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(lines))
    with InputFile(path, PLAIN) as source, pytest.raises(InvalidRequestError, match=message):
        source.check()


def test_a_written_result_can_be_read(tmp_path):
    path = tmp_path / "out.jsonl"
    token = TokenLogprob(5, "é", -0.25)
    result = RequestOutput("line 1", [completion("é\n", logprobs=[PositionLogprobs(token, [token])])])
    with path.open("ab") as file:
        assert write_result(file, "x", result) is None
    written = msgspec.json.decode(path.read_bytes())
    logprob = {"token_id": 5, "text": "é", "logprob": -0.25}
    assert written == {
        "id": "x",
        "prompt_tokens": 3,
        "completions": [
            {
                "index": 0,
                "text": "é\n",
                "token_ids": [1],
                "finish_reason": "stop",
                "stop_reason": None,
                "logprobs": [logprob | {"top": [logprob]}],
                "ttft": 0.5,
                "tpot": 0.5,
                "compressions": 1,
                "preemptions": 0,
                "swaps": 0,
                "peak_blocks": 2,
            }
        ],
    }
    assert finished_ids(path) == {"x"}


@pytest.mark.parametrize(
    "result, error",
    [
        (RequestOutput("line 1", [], InvalidRequestError("too long")), "too long"),
        (RequestOutput("line 1", [completion(), completion(finish_reason="abort")]), "ended the request"),
        (
            RequestOutput("line 1", [completion(), completion(finish_reason="error")]),
            "failed several times to compress",
        ),
    ],
)
def test_what_is_not_a_result_is_written_as_an_error(tmp_path, result, error):
    path = tmp_path / "out.jsonl"
    with path.open("ab") as file:
        assert error in write_result(file, 1, result)
    assert error in msgspec.json.decode(path.read_bytes())["error"]
    assert finished_ids(path) == set()


def test_what_a_deadline_has_ended_is_a_result(tmp_path):
    path = tmp_path / "out.jsonl"
    with path.open("ab") as file:
        assert write_result(file, 1, RequestOutput("line 1", [completion("so far", "deadline")])) is None
    [written] = msgspec.json.decode(path.read_bytes())["completions"]
    assert (written["text"], written["finish_reason"]) == ("so far", "deadline")
    assert finished_ids(path) == {1}


@pytest.mark.parametrize("rest", [b'{"id": 9, "err', b'{"id":"x","completions":[]}', b"{", b'{"id":"y","error":"x"}\n'])
def test_lines_without_a_result_leave_the_output(tmp_path, rest):
    path = tmp_path / "out.jsonl"
    good = b'{"id":1,"completions":[]}\n{"id":"1","completions":[]}\n'
    path.write_bytes(good + rest.replace(b'"id": ', b'"id":'))
    path.chmod(0o640)
    assert finished_ids(path) == {1, "1"}
    assert path.read_bytes() == good
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "text", ["my notes", "my notes\n", '{"id":1}\n', '{"prompt":"a"}\n', '{"id":1,"comp\n', "\n", "[]"]
)
def test_a_file_with_something_else_is_left_alone(tmp_path, text):
    path = tmp_path / "notes.txt"
    path.write_text('{"id":1,"error":"x"}\n' + text)
    with pytest.raises(InvalidRequestError, match=r"notes.txt line 2 is not an output line of zipage run"):
        finished_ids(path)
    assert path.read_text().endswith(text)


def test_no_output_file_has_no_results(tmp_path):
    assert finished_ids(tmp_path / "out.jsonl") == set()
