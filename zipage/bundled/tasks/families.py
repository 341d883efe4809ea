"""The families of reasoning, by name."""

import random
from collections.abc import Callable

from zipage.bundled.tasks import branching, ledger, machine, multiplication, recurrence, subset_sum
from zipage.bundled.tasks.example import Example

SampleFunction = Callable[[random.Random, int], Example]
"""`sample(rng, size)`: an example whose reasoning has about `size` characters, 150 to 6,000."""

FAMILIES: dict[str, SampleFunction] = {
    "machine": machine.sample,
    "branching": branching.sample,
    "recurrence": recurrence.sample,
    "ledger": ledger.sample,
    "multiplication": multiplication.sample,
    "subset-sum": subset_sum.sample,
}

FIRST_WORDS: dict[str, str] = {
    "machine": "Run",
    "branching": "Branch",
    "recurrence": "Recur",
    "ledger": "Ledger",
    "multiplication": "Multiply",
    "subset-sum": "Weigh",
}
"""How the prompts of each family begin, and of no other."""

DESCRIPTIONS: dict[str, str] = {
    "machine": "follow the rule of each state (`Ka +37 Tum`: in Ka, add 37 modulo 1000 and go to Tum)",
    "branching": "follow the rule of each state for small (below 500) or for large values, which are modulo 1000",
    "recurrence": "add the last two values, and a constant that depends on the size of their sum, modulo 1000",
    "ledger": "work out one account after the other, from numbers or from earlier accounts, modulo 1000",
    "multiplication": "multiply digit by digit, and take the first three digits of the product to the next factor",
    "subset-sum": "find weights that add up to a number, by a search that takes back what does not fit",
}
"""For a person who sees a prompt: what it asks, as a part of a sentence."""
