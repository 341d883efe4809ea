"""The interactive loop of `zipage run` on a terminal."""

import contextlib
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zipage.commands.jsonl import with_system
from zipage.commands.session import Answer, Session
from zipage.errors import InvalidRequestError

_PROMPT = ">>> "
_CONTINUATION = "... "


def has_chat_template(directory: Path) -> bool:
    """Whether a model comes with a chat template, in a file of its own or in tokenizer_config.json."""
    if (directory / "chat_template.jinja").is_file():
        return True
    try:
        return bool(json.loads((directory / "tokenizer_config.json").read_bytes()).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def converse(session: Session, example: Callable[[], str | None] | None, ask: Callable[[str], str] = input) -> None:
    """Answer what the user types until /exit, Ctrl-D, or Ctrl-C at the prompt; Ctrl-C in an answer stops it.

    With `session.chat` the conversation goes on until /clear, else every text is a prompt by itself to be continued.
    What cannot be answered, such as a conversation that has grown too long, is told and dropped; of an answer that was
    cut short, what there is stays in the conversation.

    Args:
        session: the run.
        example: writes an example and returns what went wrong, if anything; called at the start and for an empty line.
        ask: reads a line of the user after showing a prompt; raises EOFError at the end.

    Raises:
        EngineError: the engine has ended.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # from here on, `input` edits lines and remembers them
    history: list[dict[str, Any]] = []
    if example is not None:
        _stoppable(session, example)
    session.note(_introduction(session, example is not None))
    while (text := _read(ask)) is not None and text.strip() != "/exit":
        if session.chat and text.strip() == "/clear":
            history = []
        elif text:
            history = _answer(session, text, history)
        elif example is not None:
            _stoppable(session, example)


def _introduction(session: Session, has_examples: bool) -> str:
    subject = "A message" if session.chat else "A text to continue"
    clear = "/clear starts a new conversation, " if session.chat else ""
    example = "Enter alone shows another example, " if has_examples else ""
    return f"{subject}; a line that ends in \\ goes on. {example}{clear}Ctrl-C stops an answer, /exit or Ctrl-D leaves."


def _read(ask: Callable[[str], str]) -> str | None:
    """The user's next text, or None where there is none; a backslash at the end of a line stands for a line end."""
    lines = []
    try:
        line = ask(_PROMPT)
        while line.endswith("\\"):
            lines.append(line[:-1])
            line = ask(_CONTINUATION)
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    return "\n".join([*lines, line])


def _answer(session: Session, text: str, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the answer and return the conversation after it."""
    question = [*history, {"role": "user", "content": text}]
    prompt = with_system(question, session.system) if session.chat else text
    answer = Answer()
    _stoppable(session, lambda: answer.write(session.client.stream(prompt, session.params), session))
    # Without a word of an answer the question is forgotten too, so that turns keep alternating.
    return [*question, {"role": "assistant", "content": answer.text}] if answer.text else history


def _stoppable(session: Session, work: Callable[[], str | None]) -> None:
    """Do something that Ctrl-C, a refusal or a failure ends without ending the loop."""
    try:
        failure = work()
    except KeyboardInterrupt:
        session.note("(stopped)")
        return
    except InvalidRequestError as error:
        failure = str(error)
    if failure is not None:
        print(f"zipage: error: {failure}", file=sys.stderr)
