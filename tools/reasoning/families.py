"""The families of reasoning, by name."""

import random
from collections.abc import Callable

from tools.reasoning import branching, ledger, machine, multiplication, recurrence, subset_sum
from tools.reasoning.example import Example

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
