"""`zipage serve`: an engine for clients in other processes."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from zipage.commands.options import ENGINE_OPTIONS, add_options, engine_fields
from zipage.commands.session import write_note
from zipage.commands.summary import describe_engine
from zipage.llm import BUNDLED, make_config
from zipage.supervisor import Supervisor


@click.command(short_help="Run an engine for zipage.Client.")
@click.argument("model", required=False)
@click.option(
    "--address-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the address to this file when the engine is ready, and remove it at the end.",
)
@click.option("--quiet", is_flag=True, help="Write nothing but the address and errors.")
@add_options(ENGINE_OPTIONS)
def serve(model: str | None, address_file: Path | None, quiet: bool, **options: Any) -> None:
    """Run an engine with MODEL: a directory, a hub id, or `bundled`, which is also what no MODEL means.

    Prints the address that zipage.Client takes, and serves until Ctrl-C or SIGTERM. Only this machine's user can
    connect.

    In [brackets]: what holds where an option is not given.
    """
    config = make_config(model, engine_fields(options))
    name = model or BUNDLED
    write_note(f"starting an engine for {name}", quiet)
    with Supervisor.start(config) as supervisor, _announced(supervisor.address, address_file):
        write_note(describe_engine(name, config, supervisor.status, mps=supervisor.mps), quiet)
        supervisor.failed.wait()
        supervisor.check()


@contextlib.contextmanager
def _announced(address: str, path: Path | None) -> Iterator[None]:
    """Print the address; write it to a file that a reader never sees half written."""
    if path is None:
        click.echo(address)
        yield
        return
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(address + "\n")
    os.replace(file.name, path)
    try:
        click.echo(address)
        yield
    finally:
        path.unlink(missing_ok=True)
