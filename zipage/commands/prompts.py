"""Prompts from the command line or standard input."""

import sys
from collections.abc import Sequence

from zipage.client_requests import make_request
from zipage.commands.endings import DEADLINE_NOTE, failure_of
from zipage.commands.session import Answer, Session
from zipage.errors import InvalidRequestError
from zipage.results import Completion, RequestOutput


def read_standard_input() -> str:
    """The whole of standard input, unchanged; empty where it is a terminal or closed.

    Raises:
        InvalidRequestError: it is not UTF-8.
    """
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"standard input is not UTF-8: {error}") from None


def answer_prompts(session: Session, prompts: Sequence[str]) -> str | None:
    """Write the answers to standard output in the order of the prompts; returns what went wrong, if anything.

    A single answer is written as it is made. Several prompts, or several completions of one, are written as soon as
    they and everything before them are complete, each under a line that names it.

    Raises:
        InvalidRequestError: the only prompt was refused.
        EngineError: the engine has ended.
    """
    if len(prompts) == 1 and session.params.n == 1:
        return Answer().write(session.client.stream(session.as_prompt(prompts[0]), session.params), session)
    requests = [
        make_request(str(place), session.as_prompt(prompt), session.params) for place, prompt in enumerate(prompts)
    ]
    waiting: dict[int, RequestOutput] = {}
    following, failed = 0, 0
    with session.working(len(prompts)) as bar:
        for result in session.client.completed(requests, session.window):
            bar.advance()
            session.summary.add(result.completions)
            waiting[int(result.request_id)] = result
            while following in waiting:
                with bar.paused():
                    failed += not _write_result(session, waiting.pop(following), following + 1, len(prompts))
                following += 1
    return f"{failed} of {len(prompts)} prompts were refused or not answered to the end" if failed else None


def _write_result(session: Session, result: RequestOutput, number: int, total: int) -> bool:
    """Write the answers to one prompt, and on stderr what was refused or cut short; returns whether nothing failed."""
    if result.error is not None:
        print(f"zipage: error: prompt {number}: {result.error}", file=sys.stderr)
        return False
    if total > 1:
        print(f"=== prompt {number} of {total} ===")
    for completion in result.completions:
        if len(result.completions) > 1:
            print(f"--- completion {completion.index} ---")
        print(completion.text)
    sys.stdout.flush()
    endings = [_tell_ending(session, completion, number) for completion in result.completions]
    return all(endings)


def _tell_ending(session: Session, completion: Completion, number: int) -> bool:
    """Say on stderr how a completion was cut short, if it was; returns whether it is an answer."""
    name = f"prompt {number}, completion {completion.index}" if session.params.n > 1 else f"prompt {number}"
    failure = failure_of(completion.finish_reason)
    if failure is not None:
        print(f"zipage: error: {name}: {failure}", file=sys.stderr)
    elif completion.finish_reason == "deadline":
        session.note(f"{name}: {DEADLINE_NOTE}")
    return failure is None
