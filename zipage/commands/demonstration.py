"""A first example: a random prompt of the bundled model's task, whose exact answer is known."""

import random
import runpy
from collections.abc import Callable
from pathlib import Path

import msgspec

from zipage.commands.session import Answer, Session
from zipage.models.source import default_model

_STATES = 5
_STEPS = 20

SampleTask = Callable[[random.Random, int, int], tuple[str, str]]


class Demonstration:
    """Prompts drawn one after the other; the engine's seed makes them the same in every run."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sample = load_task(default_model())
        self._random = random.Random(session.config.seed)

    def show(self) -> str | None:
        """Show a prompt, write the model's greedy answer to it, and say whether the answer is exact.

        Returns:
            What went wrong, if anything; of an answer that was cut short there is no verdict.

        Raises:
            EngineError: the engine has ended.
        """
        prompt, expected = self._sample(self._random, _STATES, _STEPS)
        note = self._session.note
        note(
            f"An example of the bundled model's task: take {_STEPS} steps by rules (`A:C+37;` is: in A, add 37 modulo\n"
            f"1000 and go to C), and answer with the last state and value. The prompt:\n\n{prompt}"
        )
        params = self._session.params
        if params.temperature is None:
            params = msgspec.structs.replace(params, temperature=0.0)
        answer = Answer()
        failure = answer.write(self._session.client.stream(prompt, params), self._session)
        if answer.text == expected:
            note("\nThe answer is exact, to the last character.")
        elif answer.finish_reason in ("stop", "length"):
            note(f"\nThe answer is not exact; it should end in {expected.splitlines()[-1]}")
        return failure


def load_task(directory: Path) -> SampleTask:
    """The function of the bundled model's task.py that draws a prompt and its exact answer."""
    sample: SampleTask = runpy.run_path(str(directory / "task.py"))["sample"]
    return sample
