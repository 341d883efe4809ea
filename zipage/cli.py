"""The command line: `zipage run` and `zipage serve`."""

import io
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from types import FrameType
from typing import NoReturn

import click

from zipage.commands.run import run
from zipage.commands.serve import serve
from zipage.errors import ConfigError, ZipageError

_FAILURE = 1
_USAGE = 2
_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM


@click.group(invoke_without_command=True)
@click.version_option(version("zipage"), prog_name="zipage")
@click.pass_context
def zipage(context: click.Context) -> None:
    """An LLM inference engine that bounds the KV cache of every request."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


zipage.add_command(run)
zipage.add_command(serve)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code.

    0 is success, 1 a failure, 2 wrong usage, 130 an end by Ctrl-C, 143 an end by SIGTERM. Every error is one line on
    stderr.
    """
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return int(zipage.main(arguments, prog_name="zipage", standalone_mode=False) or 0)
    except click.Abort:
        return _INTERRUPTED
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "zipage"
        return _report(f"{error.format_message()} (`{command} --help` lists what there is)", _USAGE)
    except click.ClickException as error:
        return _report(error.format_message(), error.exit_code)
    except ConfigError as error:
        return _report(str(error), _USAGE)
    except (ZipageError, OSError) as error:
        return _report(str(error), _FAILURE)


def _report(message: str, exit_code: int) -> int:
    print(f"zipage: error: {' '.join(message.split())}", file=sys.stderr)
    return exit_code


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    """End like an interrupt does, so that every context manager cleans up; a second signal does not disturb that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(_TERMINATED)
