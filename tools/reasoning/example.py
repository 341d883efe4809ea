"""One prompt with the only right answer to it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """What a user asks, and what greedy decoding must give.

    Attributes:
        prompt: one line of text with all the data of the task.
        reasoning: the lines between `<think>` and `</think>`, separated by newlines, without one at the end.
        answer: one line.
    """

    prompt: str
    reasoning: str
    answer: str
