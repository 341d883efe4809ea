"""The interactive loop of `zipage run`, against a fake engine; the user is a list of lines."""

import io

import pytest
from fake_engine import FakeEngine

from zipage.client import Client
from zipage.commands.chat import converse, has_chat_template
from zipage.commands.session import Session
from zipage.config import EngineConfig
from zipage.models.source import default_model
from zipage.sampling_params import SamplingParams


@pytest.fixture
def engine(tmp_path):
    with FakeEngine(f"ipc://{tmp_path}/engine") as engine:
        yield engine


def user(*lines):
    """Types lines; an exception is what the user does instead. Then Ctrl-D."""
    typed = iter(lines)

    def ask(prompt):
        line = next(typed, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return ask


def talk(engine, *lines, chat=True, system=None, example=None, quiet=True):
    """Returns the text of every request as the engine saw it."""
    with Client(engine.address) as client:
        session = Session(client, EngineConfig(model="fake"), SamplingParams(), chat, system, quiet)
        converse(session, example, user(*lines))
    return [request.prompt or [message["content"] for message in request.messages] for request in engine.requests]


def test_a_chat_remembers_its_turns(engine, capsys):
    seen = talk(engine, "a", "", "b", "/exit", "c", system="s")
    assert seen == [["s", "a"], ["s", "a", "SYSTEM:S USER:A", "b"]]
    assert capsys.readouterr().out.splitlines()[0] == "SYSTEM:S USER:A"
    assert [message["role"] for message in engine.requests[1].messages] == ["system", "user", "assistant", "user"]


def test_clear_starts_a_new_conversation(engine):
    assert talk(engine, "a", "/clear", "b") == [["a"], ["b"]]


def test_a_model_without_chat_continues_each_text(engine):
    assert talk(engine, "a", "/clear", "b", chat=False) == ["a", "/clear", "b"]


def test_a_backslash_goes_on_in_the_next_line(engine):
    assert talk(engine, "a\\", "b\\", "", chat=False) == ["a\nb\n"]


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_the_end_of_input_or_an_interrupt_at_the_prompt_leaves(engine, end):
    assert talk(engine, "a", end, "b", chat=False) == ["a"]


class InterruptingScreen(io.StringIO):
    """The user presses Ctrl-C when the first piece of an answer is on the screen."""

    interrupted = False

    def flush(self):
        if "HANG" in self.getvalue() and not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt


def test_an_interrupt_stops_an_answer_and_keeps_what_came(engine, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout", InterruptingScreen())
    assert talk(engine, "hang", "b", quiet=False)[1] == ["hang", "HANG", "b"]
    assert engine.aborted == [engine.requests[0].request_id]
    assert "(stopped)" in capsys.readouterr().err


def test_a_refused_turn_is_told_and_forgotten(engine, capsys):
    assert talk(engine, "refuse", "b", chat=False) == ["refuse", "b"]
    assert capsys.readouterr().err == "zipage: error: prompt must be shorter\n"


def test_a_refused_turn_does_not_stay_in_a_chat(engine):
    assert talk(engine, "a", "refuse", "b") == [["a"], ["a", "USER:A", "refuse"], ["a", "USER:A", "b"]]


@pytest.mark.parametrize(
    "question, told",
    [
        ("deadline", "(ended by its deadline)\n"),
        ("error", "zipage: error: the engine ended the request, whose KV cache it failed several times"),
        ("full", "zipage: error: the engine is full: 4 completions wait; max_waiting"),
    ],
)
def test_what_ended_an_answer_is_told_and_the_chat_goes_on(engine, capsys, question, told):
    seen = talk(engine, question, "b", quiet=False)
    kept = [] if question == "full" else [question, f"USER:{question.upper()}"]
    assert seen[1] == [*kept, "b"]
    assert told in capsys.readouterr().err


def test_a_failure_is_told_however_quiet(engine, capsys):
    talk(engine, "deadline", "error", chat=False)
    assert capsys.readouterr().err.count("\n") == 1


def test_an_example_that_fails_is_told_and_the_chat_goes_on(engine, capsys):
    assert talk(engine, "a", chat=False, example=lambda: "out of memory") == ["a"]
    assert capsys.readouterr().err == "zipage: error: out of memory\n"


def test_examples_come_first_and_at_empty_lines(engine):
    shown: list[int] = []
    assert talk(engine, "", "a", "", chat=False, example=lambda: shown.append(len(engine.requests))) == ["a"]
    assert shown == [0, 0, 1]


@pytest.mark.parametrize(
    "files, expected",
    [
        ({}, False),
        ({"tokenizer_config.json": "{}"}, False),
        ({"tokenizer_config.json": '{"chat_template": null}'}, False),
        ({"tokenizer_config.json": "broken"}, False),
        ({"tokenizer_config.json": "[]"}, False),
        ({"tokenizer_config.json": '{"chat_template": "{{ messages }}"}'}, True),
        ({"chat_template.jinja": "{{ messages }}"}, True),
    ],
)
def test_a_chat_template_is_found(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert has_chat_template(tmp_path) is expected


def test_the_bundled_model_has_a_chat_template():
    assert has_chat_template(default_model())
