"""One prompt with the only right answer to it."""

from dataclasses import dataclass

THINK, END_THINK = "<think>", "</think>"


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

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation to send: one message of the user."""
        return [{"role": "user", "content": self.prompt}]

    @property
    def text(self) -> str:
        """The whole right answer, as it comes back without special tokens."""
        return f"{THINK}\n{self.reasoning}\n{END_THINK}\n{self.answer}"
