"""A machine with two rules for every state, one for small and one for large values; states live in rooms.

    Branch 2 steps from 417 Ka: Ka large -5 Tum, Tum small +120 Tum, Ka small +37 Tum, Tum large +8 Ka.

    2: 417 Ka small +37 Tum
    1: 454 Tum small +120 Tum
    0: 574 Tum

Values below 500 are small. Most rules stay in the room of their state, and few lead out of it, so a rule comes back at
irregular times, often after gaps that are long against a budget. An eviction policy must keep one copy of every rule
that may come again, although it was last looked at long ago: in the prompt or in the trace. A sliding window fails.
"""

import random

from zipage.bundled.tasks.draws import add, names, number
from zipage.bundled.tasks.example import Example

CHARACTERS_PER_STEP = 24
CHARACTERS_PER_STATE = 300
ROOM = 4
EXIT_SHARE = 0.12
ATTEMPTS = 10
KINDS = ("small", "large")
FIRST_LARGE = 500

Key = tuple[str, str]
Rules = dict[Key, tuple[str, int, str]]


def sample(rng: random.Random, size: int) -> Example:
    """A machine whose trace has about `size` characters; 2 to 20 states, fewer in short traces.

    Machines that are soon caught in a small part of themselves are drawn again: in the second half of the trace at
    least half of the rules are used.
    """
    largest = max(2, min(20, size // CHARACTERS_PER_STATE))
    steps = max(2, size // CHARACTERS_PER_STEP)
    for _ in range(ATTEMPTS):
        states = names(rng, rng.randint(max(2, largest // 2), largest))
        rules = _rules(rng, states)
        walk = _walk(rules, (number(rng), rng.choice(states)), steps)
        if 2 * len({key for _, key in walk[steps // 2 :]}) >= len(rules):
            break
    order = rng.sample(list(rules), len(rules))
    listing = ", ".join("{} {} {}{} {}".format(*key, *rules[key]) for key in order)
    last_value, (last_state, _) = walk.pop()
    lines = [
        "{}: {} {} {} {}{} {}".format(steps - index, value, *key, *rules[key])
        for index, (value, key) in enumerate(walk)
    ]
    lines.append(f"0: {last_value} {last_state}")
    first_value, (first_state, _) = walk[0]
    prompt = f"Branch {steps} steps from {first_value} {first_state}: {listing}."
    return Example(prompt, "\n".join(lines), f"{last_value} {last_state}")


def _rules(rng: random.Random, states: list[str]) -> Rules:
    """A rule for every state and kind of value; one of the two leads on, in a ring through all rooms."""
    rules = {}
    for index, state in enumerate(states):
        room = [name for name in states[index - index % ROOM :][:ROOM] if name != state] or states
        onward = states[(index + 1) % len(states)]
        targets = [rng.choice(states if rng.random() < EXIT_SHARE else room), onward]
        rng.shuffle(targets)
        for kind, target in zip(KINDS, targets, strict=True):
            rules[state, kind] = (rng.choice("+-"), number(rng), target)
    return rules


def _walk(rules: Rules, start: tuple[int, str], steps: int) -> list[tuple[int, Key]]:
    """The value, and the key of the rule that it meets, before each step and after the last."""
    value, state = start
    walk = []
    for _ in range(steps):
        key = state, KINDS[value >= FIRST_LARGE]
        walk.append((value, key))
        sign, operand, state = rules[key]
        value = add(value, sign, operand)
    return [*walk, (value, (state, ""))]
