"""`zipage run`: generate text from the command line."""

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from zipage.client import Client
from zipage.commands.batch import run_file
from zipage.commands.chat import converse, has_chat_template
from zipage.commands.demonstration import Demonstration, note_other_prompts
from zipage.commands.jsonl import InputFile, InputOptions
from zipage.commands.options import ENGINE_OPTIONS, SAMPLING_OPTIONS, add_options, engine_fields, sampling_fields
from zipage.commands.prompts import answer_prompts, read_standard_input
from zipage.commands.session import Session, write_note
from zipage.commands.summary import describe_engine
from zipage.config import EngineConfig
from zipage.errors import InvalidRequestError, ZipageError
from zipage.llm import BUNDLED, make_config
from zipage.sampling_params import SamplingParams, sampling_params_from
from zipage.supervisor import Supervisor

Work = Callable[[Session], str | None]
_PATH = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Generate text.")
@click.argument("model", required=False)
@click.argument("prompts", metavar="[PROMPT]...", nargs=-1)
@click.option("--input", "input_path", type=_PATH, help="Read prompts from a JSONL file.")
@click.option(
    "--output", "output_path", type=_PATH, help="With --input: write results to a JSONL file, or complete it."
)
@click.option(
    "--chat/--no-chat",
    default=None,
    help="Send prompts as chat messages [where the model has a chat template; with --input, off].",
)
@click.option("--system", help="The system message of every conversation.")
@click.option("--quiet", is_flag=True, help="Write nothing but answers and errors.")
@add_options(SAMPLING_OPTIONS)
@add_options(ENGINE_OPTIONS)
def run(
    model: str | None,
    prompts: tuple[str, ...],
    input_path: Path | None,
    output_path: Path | None,
    chat: bool | None,
    system: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Generate text with MODEL: a directory, a hub id (owner/name), or `bundled`, the model that ships with zipage.

    The first argument is always the model; without arguments it is the bundled one. All further arguments are prompts.

    Without prompts, `zipage run` chats on a terminal, and otherwise takes the whole of standard input, unchanged, as
    one prompt. The bundled model, which knows six kinds of task only, first shows an example of one.

    \b
    A line of the --input file is an object with one of
        "prompt": text, "prompt_token_ids": [numbers], or "messages": [chat messages],
    and optionally an "id" (else it is the line's number) and any sampling field, such as "max_tokens". A line of the
    --output file is {"id", "prompt_tokens", "completions"}, or {"id", "error"} where the engine refused the request or
    did not finish it. Results are written as they are finished; an answer that its deadline ended is one. The same
    command again goes on with what has no result yet.

    In [brackets]: what holds where an option is not given.
    """
    _check_usage(model, prompts, input_path, output_path, options)
    sampling = sampling_fields(options)
    params = _checked_params(sampling)
    with ExitStack() as resources:
        if input_path is not None:
            lines = InputFile(input_path, InputOptions(sampling, bool(chat), system))
            work = _file_work(resources.enter_context(lines), output_path)
        else:
            work = _prompt_work(prompts, params, bundled=model in (None, BUNDLED))
        config = make_config(model, engine_fields(options))
        chat = _resolve_chat(chat, system, config, from_file=input_path is not None)
        name = model or BUNDLED
        write_note(f"starting an engine for {name}", quiet)
        supervisor = resources.enter_context(Supervisor.start(config))
        client = resources.enter_context(Client(supervisor.address, check=supervisor.check))
        session = Session(client, config, params, chat, system, quiet)
        session.note(describe_engine(name, config, supervisor.status, mps=supervisor.mps))
        failure = work(session)
        session.note(session.summary.report(config, client.status()))
    if failure is not None:
        raise ZipageError(failure)


def _check_usage(
    model: str | None,
    prompts: tuple[str, ...],
    input_path: Path | None,
    output_path: Path | None,
    options: dict[str, Any],
) -> None:
    """Raises UsageError for arguments that contradict each other."""
    if model is not None and model != BUNDLED and "/" not in model and not os.path.isdir(os.path.expanduser(model)):
        raise click.UsageError(
            f"MODEL {model!r} is neither a directory nor a hub id (owner/name); the first argument is always the "
            f"model, and {BUNDLED!r} is the one that ships with zipage"
        )
    if input_path is not None and prompts:
        raise click.UsageError("--input and prompts cannot be given together")
    if output_path is not None and input_path is None:
        raise click.UsageError("--output needs --input; other answers go to standard output")
    if output_path is not None and input_path is not None and output_path.resolve() == input_path.resolve():
        raise click.UsageError("--output and --input must be two files")
    if options["logprobs"] is not None and input_path is None:
        raise click.UsageError("--logprobs needs --input, whose results have a place for them")


def _checked_params(sampling: dict[str, Any]) -> SamplingParams:
    try:
        return sampling_params_from(sampling)
    except InvalidRequestError as error:
        raise click.UsageError(str(error)) from None


def _resolve_chat(chat: bool | None, system: str | None, config: EngineConfig, *, from_file: bool) -> bool:
    """Whether prompts are sent as chat messages. Raises UsageError where that is impossible, or `system` is unused."""
    has_template = has_chat_template(Path(config.model))
    if chat and not has_template:
        raise click.UsageError("--chat needs a model with a chat template, and this one has none")
    if chat is None:
        chat = has_template and not from_file
    if system is not None and not chat and not from_file:
        raise click.UsageError("--system needs prompts that are sent as chat messages (--chat)")
    return chat


def _file_work(source: InputFile, output: Path | None) -> Work:
    """Check the whole file, before anything is started."""
    ids = source.check()

    def work(session: Session) -> str | None:
        return run_file(session, source, ids, output)

    return work


def _prompt_work(prompts: tuple[str, ...], params: SamplingParams, *, bundled: bool) -> Work:
    """Prompts of the command line, else a terminal, else standard input, else an example of the bundled model."""
    if not prompts and not _on_terminal():
        text = read_standard_input()
        prompts = (text,) if text else ()
    if prompts:
        return lambda session: _answer_prompts(session, prompts, bundled=bundled)
    if params.n > 1:
        raise click.UsageError("--n needs a prompt as an argument or on standard input")
    if not bundled and not _on_terminal():
        raise click.UsageError("there is no prompt: give one as an argument, on standard input, or with --input")

    def work(session: Session) -> str | None:
        example = Demonstration(session).show if bundled else None
        if _on_terminal():
            converse(session, example)
            return None
        return example() if example is not None else None

    return work


def _answer_prompts(session: Session, prompts: tuple[str, ...], *, bundled: bool) -> str | None:
    if bundled:
        note_other_prompts(session, prompts)
    return answer_prompts(session, prompts)


def _on_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
