"""Accounts that are worked out one after the other, each from amounts or from accounts that were closed long before.

    Ledger: Mo is 12+37 3 times; Zat is 5+8 2 times; Ti is Mo-Zat 2 times.

    Mo is 12+37 3 times
    Mo 3: 12+37=49
    Mo 2: 49+37=86
    Mo 1: 86+37=123
    Mo=123
    (the same for Zat, which ends in Zat=21)
    Ti is Mo-Zat 2 times
    with Mo=123
    with Zat=21
    Ti 2: 123-21=102
    Ti 1: 102-21=81
    Ti=81

All results are modulo 1000. A result is set in the middle of the trace, nobody looks at it for thousands of characters,
and then it is needed. An eviction policy must keep the closing line of every account, though attention says nothing of
its future, and the plans in the prompt that are still to come. A sliding window fails.
"""

import random

from zipage.bundled.tasks.draws import add, names, number
from zipage.bundled.tasks.example import Example

CHARACTERS_PER_STEP = 17
MOST_ACCOUNTS = 30


def sample(rng: random.Random, size: int) -> Example:
    """A ledger whose trace has about `size` characters; an account takes 8 to 24 lines, fewer in short traces."""
    times = _times(rng, size)
    accounts = names(rng, len(times))
    plans, lines = [], []
    closed: dict[str, int] = {}
    unused: list[str] = []
    backlog = rng.randint(1, max(1, len(times) // 2))
    for index, (account, count) in enumerate(zip(accounts, times, strict=True)):
        uses = 2 if len(unused) >= len(times) - index else int(len(unused) > backlog)
        first, second = _operands(rng, unused, uses)
        sign = rng.choice("+-")
        plan = f"{account} is {first}{sign}{second} {count} times"
        plans.append(plan)
        lines.append(plan)
        lines += [f"with {operand}={closed[operand]}" for operand in (first, second) if operand in closed]
        value, step = (closed[operand] if operand in closed else int(operand) for operand in (first, second))
        for left in range(count, 0, -1):
            result = add(value, sign, step)
            lines.append(f"{account} {left}: {value}{sign}{step}={result}")
            value = result
        lines.append(f"{account}={value}")
        closed[account] = value
        unused.append(account)
    return Example(f"Ledger: {'; '.join(plans)}.", "\n".join(lines), f"{account}={value}")


def _times(rng: random.Random, size: int) -> list[int]:
    """The number of lines of each account, which add up to about `size` characters."""
    left = max(4, size // CHARACTERS_PER_STEP)
    times: list[int] = []
    while left > 2 and len(times) < MOST_ACCOUNTS:
        count = min(left, rng.randint(8, 24) if size > 800 else rng.randint(2, 8))
        times.append(count)
        left -= count + 3
    return times


def _operands(rng: random.Random, unused: list[str], uses: int) -> tuple[str, str]:
    """Two amounts, of which `uses` are replaced by results that nobody has used, mostly the oldest.

    A result is used once, so no use of it leaves a nearer copy for the next one.
    """
    operands = [str(number(rng)), str(number(rng))]
    for place in rng.sample((0, 1), 2)[: min(uses, len(unused))]:
        operands[place] = unused.pop(0 if rng.random() < 0.7 else rng.randrange(len(unused)))
    return operands[0], operands[1]
