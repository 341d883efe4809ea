"""A state machine: every state has one rule, which adds to a value and names the next state.

    Run 3 steps from 417 Ka: Ka +37 Tum, Tum -5 Ka.

    3: 417 Ka +37 Tum
    2: 454 Tum -5 Ka
    1: 449 Ka +37 Tum
    0: 486 Tum

A line repeats a rule to the letter; its value comes from the line before. At least half of the states form a ring, the
others lead into it. An eviction policy must keep, of every state of the ring, one copy of its rule: the prompt's, or
that of any earlier visit. States come back soon, so a sliding window that is longer than a round succeeds.
"""

import random

from zipage.bundled.tasks.draws import add, names, number
from zipage.bundled.tasks.example import Example

CHARACTERS_PER_STEP = 19
CHARACTERS_PER_STATE = 220


def sample(rng: random.Random, size: int) -> Example:
    """A machine whose trace has about `size` characters; 3 to 20 states, fewer in short traces."""
    states = names(rng, rng.randint(3, max(3, min(20, size // CHARACTERS_PER_STATE))))
    steps = max(2, size // CHARACTERS_PER_STEP)
    ring = rng.sample(states, rng.randint((len(states) + 1) // 2, len(states)))
    onward = dict(zip(ring, [*ring[1:], ring[0]], strict=True))
    rules = {state: (rng.choice("+-"), number(rng), onward.get(state) or rng.choice(states)) for state in states}
    value, state = number(rng), rng.choice(states)
    listing = ", ".join(f"{name} {sign}{operand} {target}" for name, (sign, operand, target) in rules.items())
    prompt = f"Run {steps} steps from {value} {state}: {listing}."
    lines = []
    for left in range(steps, 0, -1):
        sign, operand, target = rules[state]
        lines.append(f"{left}: {value} {state} {sign}{operand} {target}")
        value, state = add(value, sign, operand), target
    lines.append(f"0: {value} {state}")
    return Example(prompt, "\n".join(lines), f"{value} {state}")
