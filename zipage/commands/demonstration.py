"""A first example: a random task of the families that the bundled model knows, whose exact answer is known."""

import random
from collections.abc import Iterable

import msgspec

from zipage.bundled.tasks.families import DESCRIPTIONS, FAMILIES, FIRST_WORDS
from zipage.commands.session import Answer, Session

_CHARACTERS = 300


def note_other_prompts(session: Session, prompts: Iterable[str]) -> None:
    """Tell the user what the bundled model knows, if a prompt is nothing of that."""
    if not all(prompt.startswith(tuple(FIRST_WORDS.values())) for prompt in prompts):
        session.note(
            f"the bundled model knows nothing but tasks that begin with {', '.join(FIRST_WORDS.values())}; "
            "`zipage run` alone shows one"
        )


class Demonstration:
    """Tasks drawn one after the other; the engine's seed makes them the same in every run."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._random = random.Random(session.config.seed)

    def show(self) -> str | None:
        """Show a task, write the model's greedy answer to it, and say whether the answer is exact.

        Returns:
            What went wrong, if anything; of an answer that was cut short there is no verdict.

        Raises:
            EngineError: the engine has ended.
        """
        family = self._random.choice(list(FAMILIES))
        example = FAMILIES[family](self._random, _CHARACTERS)
        note = self._session.note
        note(
            f"An example of the bundled model's {len(FAMILIES)} kinds of task, which are all that it knows:\n"
            f"{DESCRIPTIONS[family]}. The message:\n\n{example.prompt}\n"
        )
        params = self._session.params
        if params.temperature is None:
            params = msgspec.structs.replace(params, temperature=0.0)
        answer = Answer()
        failure = answer.write(self._session.client.stream(example.messages, params), self._session)
        if answer.text == example.text:
            note("\nThe answer is exact, to the last character.")
        elif answer.finish_reason in ("stop", "length"):
            note(f"\nThe answer is not exact; it should end in {example.answer}")
        return failure
