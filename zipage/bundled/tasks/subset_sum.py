"""A search that backtracks: weights that add up to a target, by depth-first search with explicit undo.

    Weigh 67 with K41, T24, B17, P9.

    [] 67: K41 ok
    [K] 26: T24 ok
    [KT] 2: B17 over, P9 over, end
    undo T24, [K] 26: B17 ok
    [KB] 9: P9 ok
    [KBP] 0

A line is the state (what has been taken, and what is left to fill), and the tries that follow from it in the order of
the prompt. `ok` goes one deeper. `end`, after the last weight, goes back: the next line begins with `undo` and the
weight that was taken last, and is the state before that. An eviction policy must keep the weights in the prompt (or
copies of all of them) and the line before; a state that comes back far later follows from the undone weight.
"""

import random
from dataclasses import dataclass

from zipage.bundled.tasks.draws import LETTERS
from zipage.bundled.tasks.example import Example

ATTEMPTS = 12
SHORTEST_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Weights:
    """What a search works with: `weights[i]` is called `letters[i]`."""

    target: int
    letters: list[str]
    weights: list[int]


def sample(rng: random.Random, size: int) -> Example:
    """A search whose trace has about `size` characters: of some random ones the longest that is not longer.

    How long a search takes cannot be chosen, so the first one with at least 60% of `size` is taken.
    """
    best: tuple[Weights, list[str], str] | None = None
    longest = -1
    count = _usual_count(size)
    for _ in range(ATTEMPTS):
        weights = _draw(rng, max(3, count + rng.randint(-1, 1)))
        lines, taken = _search(weights, size)
        length = sum(map(len, lines)) + len(lines) - 1
        if taken is None:
            count = max(3, count - 1)
        elif length > longest:
            best, longest = (weights, lines, taken), length
            if length >= SHORTEST_SHARE * size:
                break
            count += 1
    if best is None:
        return sample(rng, size + 100)
    weights, lines, taken = best
    listing = ", ".join(f"{letter}{weight}" for letter, weight in zip(weights.letters, weights.weights, strict=True))
    return Example(f"Weigh {weights.target} with {listing}.", "\n".join(lines), taken)


def _usual_count(size: int) -> int:
    """How many weights make searches of about `size` characters, which grow about 1.6 times with each weight."""
    count, length = 4, 120.0
    while length * 1.6 < size:
        count, length = count + 1, length * 1.6
    return count


def _draw(rng: random.Random, count: int) -> Weights:
    """Different weights of one to three digits, and a target that some of them make up, mostly later ones."""
    weights = rng.sample(range(2, 200), count)
    chosen = [weight for place, weight in enumerate(weights) if rng.random() < 0.25 + 0.4 * place / count]
    return Weights(sum(chosen) or weights[-1], rng.sample(LETTERS, count), weights)


def _search(task: Weights, size: int) -> tuple[list[str], str | None]:
    """The lines of the search and the letters that it finds; `None` for these where it takes more than `size`."""
    letters, weights, count = task.letters, task.weights, len(task.weights)
    taken: list[int] = []
    left, place, length = task.target, 0, 0
    lines: list[str] = []
    undone = ""
    while left:
        tries: list[str] = []
        while place < count and weights[place] > left:
            tries.append(f"{letters[place]}{weights[place]} over")
            place += 1
        tries.append(f"{letters[place]}{weights[place]} ok" if place < count else "end")
        path = "".join([letters[index] for index in taken])
        lines.append(f"{undone}[{path}] {left}: {', '.join(tries)}")
        length += len(lines[-1]) + 1
        if length > size:
            return lines, None
        if place < count:
            taken.append(place)
            left -= weights[place]
            undone = ""
        else:
            place = taken.pop()
            left += weights[place]
            undone = f"undo {letters[place]}{weights[place]}, "
        place += 1
    path = "".join([letters[index] for index in taken])
    return [*lines, f"[{path}] 0"], path
