"""Long multiplication with every carry written out, over a list of factors; the first three digits go on.

    Multiply 417 by 38, 72.

    417*38
    8: 7*8+0=56 6, 1*8+5=13 36, 4*8+1=33 3336
    3: 7*3+0=21 1, 1*3+2=5 51, 4*3+0=12 1251
    38: 6, 3+1+0=4 46, 3+5+0=8 846, 3+2+0=5 5846, 0+1+0=1 15846
    keep 158
    38, 72
    158*72
    (the same again, until the factor that the prompt ends with)

Every term is digit * digit + carry, and behind it stand the digits of the product so far. The third of these lines adds
the two rows column by column, the second one shifted. An eviction policy must keep the digits of the present block, of
which some are needed a hundred characters later and others never again, and the list of factors in the prompt.
"""

import random

from zipage.bundled.tasks.example import Example

CHARACTERS_PER_FACTOR = 161


def sample(rng: random.Random, size: int) -> Example:
    """A chain of products whose trace has about `size` characters; factors are different numbers from 11 to 99."""
    factors = rng.sample([factor for factor in range(11, 100) if factor % 10], max(1, size // CHARACTERS_PER_FACTOR))
    value = rng.randrange(100, 1000)
    prompt = f"Multiply {value} by {', '.join(map(str, factors))}."
    lines: list[str] = []
    for factor, following in zip(factors, [*factors[1:], None], strict=True):
        low, low_terms = _row(value, factor % 10)
        high, high_terms = _row(value, factor // 10)
        product, columns = _sum(low, high)
        lines += [f"{value}*{factor}", low_terms, high_terms, f"{factor}: {columns}"]
        value = int(product[:3])
        lines += [f"keep {value}", f"{factor}." if following is None else f"{factor}, {following}"]
    return Example(prompt, "\n".join(lines), str(value))


def _row(value: int, digit: int) -> tuple[str, str]:
    """The product of a number and a digit, and the line that works it out from the right."""
    carry, done, terms = 0, "", []
    digits = str(value)
    for place in range(len(digits) - 1, -1, -1):
        result = int(digits[place]) * digit + carry
        last = place == 0
        done = (str(result) if last else str(result % 10)) + done
        terms.append(f"{digits[place]}*{digit}+{carry}={result} {done}")
        carry = result // 10
    return done, f"{digit}: {', '.join(terms)}"


def _sum(low: str, high: str) -> tuple[str, str]:
    """`low + 10 * high`, and the terms that add the columns from the right."""
    carry, done = 0, low[-1]
    terms = [done]
    columns = len(high)
    for place in range(1, columns + 1):
        upper = int(low[-1 - place]) if place < len(low) else 0
        lower = int(high[-place])
        result = upper + lower + carry
        done = (str(result) if place == columns else str(result % 10)) + done
        terms.append(f"{upper}+{lower}+{carry}={result} {done}")
        carry = result // 10
    return done, ", ".join(terms)
