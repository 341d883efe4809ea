"""Random numbers and names whose widths vary, so that nothing can be found by counting characters."""

import random

MODULUS = 1000
"""Additions and subtractions of all families keep the last three digits."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""One-letter names: capitals, because small letters stand in the words around them."""

CONSONANTS = "bdfgklmnprstvz"
VOWELS = "aeiou"


def number(rng: random.Random) -> int:
    """A number of one to three digits, every width equally likely (the smaller numbers have fewer still)."""
    return rng.randrange(10 ** rng.randint(1, 3))


def names(rng: random.Random, count: int) -> list[str]:
    """`count` different names (at most 70), such as `Ka` or `Tum`, that differ in their first two letters."""
    syllables = rng.sample([first + second for first in CONSONANTS for second in VOWELS], count)
    return [(syllable + rng.choice(CONSONANTS) if rng.random() < 0.3 else syllable).title() for syllable in syllables]


def add(value: int, sign: str, operand: int) -> int:
    """`value + operand` or `value - operand`, modulo 1000."""
    return (value + operand if sign == "+" else value - operand) % MODULUS
