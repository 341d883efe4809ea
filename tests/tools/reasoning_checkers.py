"""Independent solvers: from the text of a prompt, what every line of the reasoning and the answer must be.

Each checker raises AssertionError where a line is wrong, missing or too much.
"""

import re
from collections.abc import Callable, Iterator


def check_machine(prompt: str, lines: list[str], answer: str) -> None:
    steps, value, state, listing = _match(r"Run (\d+) steps from (\d+) (\w+): (.*)\.", prompt)
    rules = {}
    for rule in listing.split(", "):
        name, operand, target = _match(r"(\w+) ([+-]\d+) (\w+)", rule)
        rules[name] = (rule, int(operand), target)
    _check_walk(lines, answer, int(steps), int(value), state, lambda _value, state: rules[state])


def check_branching(prompt: str, lines: list[str], answer: str) -> None:
    steps, value, state, listing = _match(r"Branch (\d+) steps from (\d+) (\w+): (.*)\.", prompt)
    rules = {}
    for rule in listing.split(", "):
        name, kind, operand, target = _match(r"(\w+) (small|large) ([+-]\d+) (\w+)", rule)
        rules[name, kind == "large"] = (rule, int(operand), target)
    assert len(rules) % 2 == 0
    _check_walk(lines, answer, int(steps), int(value), state, lambda value, state: rules[state, value > 499])


def _check_walk(
    lines: list[str],
    answer: str,
    steps: int,
    value: int,
    state: str,
    rule_for: Callable[[int, str], tuple[str, int, str]],
) -> None:
    """A line repeats the countdown, the value and the rule; sums are checked without wrapping on the way."""
    assert len(lines) == steps + 1
    for index, line in enumerate(lines[:-1]):
        rule, operand, target = rule_for(value % 1000, state)
        assert line == f"{steps - index}: {value % 1000} {rule}"
        value, state = value + operand, target
    assert lines[-1] == f"0: {value % 1000} {state}"
    assert answer == f"{value % 1000} {state}"


def check_recurrence(prompt: str, lines: list[str], answer: str) -> None:
    rounds, first, second, uses, values = _match(r"Recur (\d+) rounds from (\d+) and (\d+): (.*); (.*)\.", prompt)
    letters = dict(re.findall(r"(low|middle|high) adds ([A-Z])", uses))
    constants = {letter: int(value) for letter, value in re.findall(r"([A-Z]) is (\d+)", values)}
    assert len(letters) == len(constants) == 3
    terms = [int(first), int(second)]
    for line in lines:
        left, older, newer, total, kind, letter, result = _match(
            r"(\d+): (\d+)\+(\d+)=(\d+) (low|middle|high) \+([A-Z])=(\d+)", line
        )
        assert int(left) == int(rounds) + 2 - len(terms)
        assert [int(older), int(newer)] == terms[-2:]
        assert (int(total) - sum(terms[-2:])) % 1000 == 0
        assert 0 <= int(total) < 1000
        assert kind == ("low" if int(total) < 300 else "high" if int(total) >= 700 else "middle")
        assert letter == letters[kind]
        assert int(result) == (sum(terms[-2:]) + constants[letter]) % 1000
        terms.append(int(result))
    assert len(terms) == int(rounds) + 2
    assert answer == str(terms[-1])


def check_ledger(prompt: str, lines: list[str], answer: str) -> None:
    (listing,) = _match(r"Ledger: (.*)\.", prompt)
    closed: dict[str, int] = {}
    rest = iter(lines)
    for plan in listing.split("; "):
        account, first, sign, second, count = _match(r"(\w+) is (\w+)([+-])(\w+) (\d+) times", plan)
        assert account not in closed
        assert next(rest) == plan
        for operand in (first, second):
            if not operand.isdigit():
                assert next(rest) == f"with {operand}={closed[operand]}"
        start, step = (int(operand) if operand.isdigit() else closed[operand] for operand in (first, second))
        signed = step if sign == "+" else -step
        for done in range(int(count)):
            before, after = ((start + times * signed) % 1000 for times in (done, done + 1))
            shown = start if done == 0 else before
            assert next(rest) == f"{account} {int(count) - done}: {shown}{sign}{step}={after}"
        closed[account] = (start + int(count) * signed) % 1000
        assert next(rest) == f"{account}={closed[account]}"
    assert next(rest, None) is None
    assert answer == f"{account}={closed[account]}"


def check_multiplication(prompt: str, lines: list[str], answer: str) -> None:
    start, listing = _match(r"Multiply (\d+) by (.*)\.", prompt)
    factors = listing.split(", ")
    assert len(set(factors)) == len(factors)
    assert len(lines) == 6 * len(factors)
    value = int(start)
    for index, factor in enumerate(factors):
        header, low, high, columns, keep, following = lines[6 * index : 6 * index + 6]
        assert header == f"{value}*{factor}"
        _check_row(low, value, int(factor[1]))
        _check_row(high, value, int(factor[0]))
        product = value * int(factor)
        head, terms = columns.split(": ")
        assert head == factor
        _check_columns(terms, value * int(factor[1]), value * int(factor[0]), product)
        value = int(str(product)[:3])
        assert keep == f"keep {value}"
        assert following == (f"{factor}, {factors[index + 1]}" if index + 1 < len(factors) else f"{factor}.")
    assert answer == str(value)


def _check_row(line: str, value: int, digit: int) -> None:
    head, terms = line.split(": ")
    assert head == str(digit)
    for place, term in enumerate(terms.split(", ")):
        left, right, carry, result, done = _match(r"(\d)\*(\d)\+(\d)=(\d+) (\d+)", term)
        assert int(left) == value // 10**place % 10
        assert int(right) == digit
        below = value % 10**place * digit
        assert int(carry) == below // 10**place
        assert int(result) == int(left) * digit + int(carry)
        _check_done(done, value % 10 ** (place + 1) * digit, place, last=place == 2)
    assert place == 2
    assert int(done) == value * digit


def _check_columns(line: str, low: int, high: int, product: int) -> None:
    first, *terms = line.split(", ")
    assert int(first) == low % 10
    for place, term in enumerate(terms, start=1):
        upper, lower, carry, result, done = _match(r"(\d)\+(\d)\+(\d)=(\d+) (\d+)", term)
        assert int(upper) == low // 10**place % 10
        assert int(lower) == high // 10 ** (place - 1) % 10
        below = low % 10**place + high * 10 % 10**place
        assert int(carry) == below // 10**place
        assert int(result) == int(upper) + int(lower) + int(carry)
        _check_done(done, below + (int(upper) + int(lower)) * 10**place, place, last=place == len(terms))
    assert len(terms) == len(str(high)) or high == 0
    assert int(done) == product


def _check_done(done: str, so_far: int, place: int, last: bool) -> None:
    """The digits so far: all of them behind the last column, before that one for each column."""
    if last:
        assert int(done) == so_far
    else:
        assert done == str(so_far % 10 ** (place + 1)).zfill(place + 1)


def check_subset_sum(prompt: str, lines: list[str], answer: str) -> None:
    target, listing = _match(r"Weigh (\d+) with (.*)\.", prompt)
    items = [(letter, int(weight)) for letter, weight in re.findall(r"([A-Z])(\d+)", listing)]
    weights = dict(items)
    assert len(weights) == len(set(weights.values())) == len(items) == listing.count(",") + 1
    for line in lines:
        path, left = _match(r"(?:undo [A-Z]\d+, )?\[([A-Z]*)\] (\d+)(?::.*)?", line)
        assert int(left) == int(target) - sum(weights[letter] for letter in path)
    assert lines == list(_explore(items, 0, "", int(target)))
    assert sum(weights[letter] for letter in answer) == int(target)
    assert lines[-1] == f"[{answer}] 0"


def _explore(items: list[tuple[str, int]], first: int, path: str, left: int) -> Iterator[str]:
    """The lines of a recursive search below a state; the last one ends in ` 0` where it has found something."""
    if left == 0:
        yield f"[{path}] 0"
        return
    line = f"[{path}] {left}:"
    for index in range(first, len(items)):
        letter, weight = items[index]
        if weight > left:
            line += f" {letter}{weight} over,"
            continue
        yield f"{line} {letter}{weight} ok"
        for below in _explore(items, index + 1, path + letter, left - weight):
            yield below
        if below.endswith("] 0"):
            return
        line = f"undo {letter}{weight}, [{path}] {left}:"
    yield f"{line} end"


def _match(pattern: str, text: str) -> tuple[str, ...]:
    found = re.fullmatch(pattern, text)
    assert found, f"{text!r} does not match {pattern}"
    return found.groups()


CHECKERS: dict[str, Callable[[str, list[str], str], None]] = {
    "machine": check_machine,
    "branching": check_branching,
    "recurrence": check_recurrence,
    "ledger": check_ledger,
    "multiplication": check_multiplication,
    "subset-sum": check_subset_sum,
}
