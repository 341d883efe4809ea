"""A recurrence of two terms: their sum, plus one of three constants that the size of the sum selects.

    Recur 2 rounds from 417 and 26: low adds K, middle adds E, high adds B; B is 907, K is 415, E is 38.

    2: 417+26=443 middle +E=481
    1: 26+481=507 middle +E=545

Sums below 300 are low, those below 700 middle, others high; all are modulo 1000. The trace names a constant but never
its value, so an eviction policy must keep the few digits of the constants in the prompt for ever, and the last line. A
sliding window fails as soon as it has passed the prompt, however long it is.
"""

import random

from zipage.bundled.tasks.draws import LETTERS, MODULUS, number
from zipage.bundled.tasks.example import Example

CHARACTERS_PER_ROUND = 28
CLASSES = ("low", "middle", "high")
CLASS_OF_HUNDREDS = ("low",) * 3 + ("middle",) * 4 + ("high",) * 3


def sample(rng: random.Random, size: int) -> Example:
    """A recurrence whose trace has about `size` characters."""
    rounds = max(2, size // CHARACTERS_PER_ROUND)
    letters = dict(zip(CLASSES, rng.sample(LETTERS, len(CLASSES)), strict=True))
    constants = {letter: number(rng) for letter in letters.values()}
    older, newer = number(rng), number(rng)
    uses = ", ".join(f"{kind} adds {letter}" for kind, letter in letters.items())
    values = ", ".join(f"{letter} is {constants[letter]}" for letter in rng.sample(list(constants), len(constants)))
    prompt = f"Recur {rounds} rounds from {older} and {newer}: {uses}; {values}."
    lines = []
    for left in range(rounds, 0, -1):
        total = (older + newer) % MODULUS
        kind = CLASS_OF_HUNDREDS[total // 100]
        letter = letters[kind]
        result = (total + constants[letter]) % MODULUS
        lines.append(f"{left}: {older}+{newer}={total} {kind} +{letter}={result}")
        older, newer = newer, result
    return Example(prompt, "\n".join(lines), str(newer))
