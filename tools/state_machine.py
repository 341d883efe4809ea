"""Prompts of the bundled model's task, from its own task.py."""

import random

from zipage.commands.demonstration import load_task
from zipage.models.source import default_model


def samples(count: int, num_states: int, num_steps: int, seed: int) -> list[tuple[str, str]]:
    """`count` pairs of (prompt, exact continuation)."""
    sample, rng = load_task(default_model()), random.Random(seed)
    return [sample(rng, num_states, num_steps) for _ in range(count)]
