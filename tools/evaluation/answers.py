"""Mathematical answers: found in a text, parsed, and compared, by math-verify."""

from typing import Any

from math_verify import parse, verify

from zipage.bundled.tasks.example import END_THINK

_BOX = "\\boxed{"


def last_box(text: str) -> str | None:
    """The content of the last complete `\\boxed{...}`."""
    start = len(text)
    while (start := text.rfind(_BOX, 0, start)) >= 0:
        depth = 0
        for place in range(start + len(_BOX) - 1, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[start + len(_BOX) : place]
    return None


def parse_answer(text: str, finished: bool) -> list[Any]:
    """What a model has answered: its last box behind the reasoning, or else what math-verify finds there.

    Args:
        text: of a completion; where it has `</think>`, only what follows the last one counts.
        finished: the completion has ended by itself; of one that was cut off only a box counts.

    Returns:
        Expressions for `is_right`; empty where none was found.
    """
    visible = text.rpartition(END_THINK)[2]
    box = last_box(visible)
    if box is not None:
        return parse_expression(box)
    found: list[Any] = parse(visible) if finished else []
    return found


def parse_expression(text: str) -> list[Any]:
    """Expressions for `is_right` from LaTeX or a plain number; empty where it is neither."""
    expressions: list[Any] = parse(f"{_BOX}{text}}}")
    return expressions


def is_right(gold: list[Any], answer: list[Any]) -> bool:
    """Whether an answer is equal to the right one, as a number, an expression, a set or a tuple."""
    return bool(answer) and bool(verify(gold, answer))
