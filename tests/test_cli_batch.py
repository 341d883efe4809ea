"""`zipage run --input`: JSONL files through the command line, against a fake engine."""

import json

import pytest
from command_line import CommandLine
from fake_engine import FakeEngine, echo

from zipage.sampling_params import SamplingParams


@pytest.fixture
def engine(tmp_path):
    with FakeEngine(f"ipc://{tmp_path}/engine") as engine:
        yield engine


@pytest.fixture
def command(engine, monkeypatch, capfd):
    return CommandLine(engine, monkeypatch, capfd)


@pytest.fixture
def files(tmp_path):
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_texts(path):
    """Text, or None for an error, by id."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    texts = {line["id"]: line["completions"][0]["text"] if "completions" in line else None for line in lines}
    assert len(texts) == len(lines)
    return texts


def test_every_line_gets_a_result(command, files):
    source, output = files
    messages = [{"role": "user", "content": "c"}]
    write_lines(
        source, [{"prompt": "a", "max_tokens": 3}, {"id": "x", "prompt_token_ids": [1]}, {"messages": messages}]
    )
    code, out, err = command("run", "bundled", "--input", source, "--output", output, "--max-tokens", 9)
    assert (code, out) == (0, "")
    assert "3 requests" in err
    assert read_texts(output) == {1: "A", "x": "1", 3: "USER:C"}
    assert [request.sampling for request in command.engine.requests] == [
        SamplingParams(max_tokens=3),
        SamplingParams(max_tokens=9),
        SamplingParams(max_tokens=9),
    ]
    assert not any(request.stream for request in command.engine.requests)


def test_without_an_output_results_go_to_standard_output(command, files):
    write_lines(files[0], [{"prompt": "a"}])
    code, out, _ = command("run", "--input", files[0], "--logprobs", 1)
    assert code == 0
    assert json.loads(out)["completions"][0]["logprobs"][0]["logprob"] == -0.5


def test_a_refused_line_does_not_lose_the_others(command, files):
    source, output = files
    write_lines(source, [{"prompt": "a"}, {"prompt": "refuse"}, {"prompt": "c"}])
    code, _, err = command("run", "--input", source, "--output", output, "--quiet")
    assert (code, err) == (1, "zipage: error: 1 of 3 lines have an error instead of a result\n")
    assert read_texts(output) == {1: "A", 2: None, 3: "C"}


def test_what_a_deadline_has_ended_is_done_and_what_the_engine_has_ended_is_tried_again(command, files):
    source, output = files
    write_lines(source, [{"prompt": "deadline b"}, {"prompt": "error b"}, {"prompt": "full"}, {"prompt": "abort b"}])
    code, _, err = command("run", "--input", source, "--output", output)
    assert code == 1
    assert "4 requests (1 completion ended by deadline)" in err
    assert err.endswith("zipage: error: 3 of 4 lines have an error instead of a result\n")
    assert read_texts(output) == {1: "DEADLINE B", 2: None, 3: None, 4: None}
    errors = [json.loads(line).get("error", "") for line in output.read_text().splitlines()]
    assert "failed several times to compress" in errors[1]
    assert "max_waiting" in errors[2]
    write_lines(source, [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}, {"prompt": "d"}])
    assert command("run", "--input", source, "--output", output, "--quiet") == (0, "", "")
    assert read_texts(output) == {1: "DEADLINE B", 2: "B", 3: "C", 4: "D"}


def test_priorities_and_deadlines_of_lines_come_before_those_of_the_command_line(command, files):
    write_lines(files[0], [{"prompt": "a", "priority": 3}, {"prompt": "b", "deadline": 5}])
    command("run", "--input", files[0], "--priority", -2, "--deadline", 9)
    assert [(request.sampling.priority, request.sampling.deadline) for request in command.engine.requests] == [
        (3, 9.0),
        (-2, 5.0),
    ]


@pytest.mark.parametrize(
    "bad", [{"promt": "a"}, {"prompt": "a", "top_p": 0}, {"prompt": "a", "deadline": -1}, {"id": 1, "prompt": "a"}]
)
def test_a_bad_line_is_told_before_anything_runs(command, files, bad):
    source, output = files
    write_lines(source, [{"prompt": "a"}, bad])
    code, _, err = command("run", "--input", source, "--output", output)
    assert code == 1
    assert err.startswith(f"zipage: error: {source} line 2: ")
    assert err.count("\n") == 1
    assert command.supervisors == []
    assert not output.exists()


def test_a_second_run_does_what_is_missing(command, files):
    source, output = files
    write_lines(source, [{"prompt": "a"}, {"prompt": "refuse"}, {"prompt": "c"}, {"prompt": "d"}])
    done = '{"id":3,"completions":[{"text":"of before"}]}\n'
    output.write_text(done + '{"id":2,"error":"of before"}\n{"id":4,"comple')
    code, _, err = command("run", "--input", source, "--output", output)
    assert code == 1
    assert f"1 of 4 lines have a result in {output} already\n" in err
    assert read_texts(output) == {3: "of before", 1: "A", 2: None, 4: "D"}
    assert [request.prompt for request in command.engine.requests] == ["a", "refuse", "d"]
    write_lines(source, [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}, {"prompt": "d"}])
    assert command("run", "--input", source, "--output", output)[0] == 0
    assert read_texts(output)[2] == "B"
    assert command("run", "--input", source, "--output", output)[0] == 0
    assert len(command.engine.requests) == 4


def test_another_file_is_not_taken_for_the_output(command, files):
    source, output = files
    write_lines(source, [{"prompt": "a"}])
    output.write_text("my notes\n")
    code, _, err = command("run", "--input", source, "--output", output, "--quiet")
    assert code == 1
    assert err == f"zipage: error: {output} line 1 is not an output line of zipage run; choose another output file\n"
    assert output.read_text() == "my notes\n"


def test_a_long_file_is_in_the_engine_only_in_part(command, files):
    source, output = files
    write_lines(source, [{"prompt": str(number)} for number in range(50)])
    assert command("run", "--input", source, "--output", output, "--max-num-seqs", 2)[0] == 0
    assert [len(submit.requests) for submit in command.engine.submits] == [8] + [1] * 42
    assert read_texts(output) == {number + 1: str(number) for number in range(50)}


def test_a_file_never_fills_the_queue(command, files):
    source, output = files
    write_lines(source, [{"prompt": str(number), "n": 2} for number in range(5)])
    assert command("run", "--input", source, "--output", output, "--max-num-seqs", 3, "--max-waiting", 2)[0] == 0
    assert [len(submit.requests) for submit in command.engine.submits] == [2, 1, 1, 1]


def test_results_before_a_failure_are_kept(tmp_path, monkeypatch, capfd, files):
    def script(request):
        if request.prompt == "c":
            command.supervisors[0].fail("decode worker was killed")
            return []
        return echo(request)

    source, output = files
    write_lines(source, [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}])
    with FakeEngine(f"ipc://{tmp_path}/engine", script) as engine:
        command = CommandLine(engine, monkeypatch, capfd)
        code, _, err = command("run", "--input", source, "--output", output)
    assert code == 1
    assert err.splitlines()[-2:] == [
        "2 of 3 lines were done; the same command goes on from there",
        "zipage: error: decode worker was killed",
    ]
    assert read_texts(output) == {1: "A", 2: "B"}


def test_chat_and_system_reach_the_lines(command, files):
    source, _ = files
    write_lines(source, [{"messages": [{"role": "user", "content": "a"}]}, {"prompt": "b"}])
    _, out, _ = command("run", "--input", source, "--system", "s")
    assert [json.loads(line)["completions"][0]["text"] for line in out.splitlines()] == ["SYSTEM:S USER:A", "B"]
