"""What every way of running prompts needs: the engine's client, the options of all prompts, and where to write."""

import contextlib
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from zipage.client import Client
from zipage.client_requests import Conversation, Prompt
from zipage.commands.endings import DEADLINE_NOTE, failure_of
from zipage.commands.jsonl import as_messages
from zipage.commands.progress import STATUS_SECONDS, ProgressBar
from zipage.commands.summary import Summary
from zipage.config import EngineConfig
from zipage.messages import Output
from zipage.sampling_params import SamplingParams

# Completions kept in the engine, as a multiple of those that run at once, so that none of its places is ever idle.
_WINDOW_PER_SEQUENCE = 4


@dataclass(frozen=True)
class Session:
    """One run of `zipage run` with an engine that is ready.

    Attributes:
        client: of the engine.
        config: of the engine.
        params: of every prompt.
        chat: send prompts as chat messages.
        system: the system message of every conversation.
        quiet: write nothing but answers and errors.
        summary: counts what the run does.
    """

    client: Client
    config: EngineConfig
    params: SamplingParams
    chat: bool
    system: str | None
    quiet: bool
    summary: Summary = field(default_factory=Summary)

    @property
    def window(self) -> int:
        """Completions to keep in the engine at a time: no more than `max_waiting` lets in."""
        running, waiting = self.config.max_num_seqs, self.config.max_waiting
        window = _WINDOW_PER_SEQUENCE * running
        return min(window, running + waiting) if waiting else window

    def note(self, text: str) -> None:
        """Tell the user something about the run, on stderr."""
        write_note(text, self.quiet)

    def as_prompt(self, text: str) -> Prompt | Conversation:
        """What to send for a prompt."""
        return as_messages(text, self.system) if self.chat else text

    @contextlib.contextmanager
    def working(self, total: int) -> Iterator[ProgressBar]:
        """Count the time inside as work on `total` requests, and show a progress bar."""
        with (
            self.summary.working(),
            ProgressBar(total, shown=not self.quiet) as bar,
            self.client.watching_status(bar.show_status, STATUS_SECONDS),
        ):
            yield bar


def write_note(text: str, quiet: bool) -> None:
    """Write a text to stderr, unless the user wants quiet."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


class Answer:
    """One answer on its way to standard output; what has come so far stays here when it is interrupted.

    Attributes:
        finish_reason: how it has ended; `None` before.
    """

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self.finish_reason: str | None = None

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._pieces)

    def write(self, outputs: Generator[Output, None, None], session: Session) -> str | None:
        """Write every piece as it comes, and a line end; returns what went wrong, if anything."""
        with session.summary.working(), contextlib.closing(outputs):
            try:
                for output in outputs:
                    self._take(output, session.summary)
                    sys.stdout.write(output.text)
                    sys.stdout.flush()
            finally:
                if self._pieces:
                    sys.stdout.write("\n")
                    sys.stdout.flush()
        if self.finish_reason == "deadline":
            session.note(f"({DEADLINE_NOTE})")
        return failure_of(self.finish_reason)

    def _take(self, output: Output, summary: Summary) -> None:
        self._pieces.append(output.text)
        self.finish_reason = output.finish_reason
        if output.finish_reason is not None:
            summary.add([output])
