"""Prompts of the bundled model's families, whose answers are known to the last character."""

import random
from collections.abc import Sequence

from tools.reasoning.encoding import encode
from zipage.bundled.tasks.example import Example
from zipage.bundled.tasks.families import FAMILIES

UNDER_A_BUDGET = ("machine", "recurrence")
"""Families that the default scoring answers exactly at a quarter of their length (docs/quality.md), unless the
prompt takes most of that."""


def samples(count: int, size: int, seed: int, families: Sequence[str] = ("machine",)) -> list[Example]:
    """`count` examples of these families in turn, with reasoning of about `size` characters (150 to 6,000)."""
    rng = random.Random(seed)
    return [FAMILIES[families[index % len(families)]](rng, size) for index in range(count)]


def prompt_token_ids(example: Example) -> list[int]:
    """The bundled model's tokens of an example's conversation, up to where the answer begins."""
    document = encode(example)
    token_ids: list[int] = document.token_ids[: document.prompt_length].tolist()
    return token_ids
