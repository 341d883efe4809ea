"""The families of reasoning against independent solvers, and what makes them hard for an eviction policy."""

import random
import re
import statistics

import pytest
from reasoning_checkers import CHECKERS

from tools.reasoning.schedule import LONGEST, SHORTEST
from tools.reasoning.vocabulary import CHARACTERS
from zipage.bundled.tasks.example import Example
from zipage.bundled.tasks.families import DESCRIPTIONS, FAMILIES, FIRST_WORDS

SIZES = (SHORTEST, 400, 1000, 2500, LONGEST)


def draw(family: str, size: int, seed: int) -> Example:
    return FAMILIES[family](random.Random(seed), size)


def check(family: str, example: Example) -> None:
    CHECKERS[family](example.prompt, example.reasoning.split("\n"), example.answer)


def test_every_family_has_a_checker() -> None:
    assert list(FAMILIES) == list(CHECKERS)


def test_every_family_is_told_by_its_first_word_and_described() -> None:
    assert list(FAMILIES) == list(FIRST_WORDS) == list(DESCRIPTIONS)
    for family in FAMILIES:
        prompt = draw(family, 400, seed=1).prompt
        assert [name for name, word in FIRST_WORDS.items() if prompt.startswith(word)] == [family]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_line_follows_from_the_prompt(family: str, size: int) -> None:
    for seed in range(40):
        check(family, draw(family, size, seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_checkers_find_any_wrong_digit(family: str) -> None:
    example = draw(family, 400, seed=3)
    digits = [place for place, character in enumerate(example.reasoning) if character.isdigit()]
    for place in digits[:: len(digits) // 25]:
        wrong = str((int(example.reasoning[place]) + 1) % 10)
        broken = example.reasoning[:place] + wrong + example.reasoning[place + 1 :]
        with pytest.raises((AssertionError, KeyError)):
            check(family, Example(example.prompt, broken, example.answer))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_example(family: str) -> None:
    assert draw(family, 1000, 7) == draw(family, 1000, 7)
    assert draw(family, 1000, 7) != draw(family, 1000, 8)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_known_characters_and_one_line_of_prompt(family: str) -> None:
    for seed in range(20):
        example = draw(family, 1500, seed)
        assert set(example.prompt + example.reasoning + example.answer) <= set(CHARACTERS)
        assert "\n" not in example.prompt + example.answer


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_size_is_about_the_length_of_the_reasoning(family: str, size: int) -> None:
    lengths = [len(draw(family, size, seed).reasoning) for seed in range(40)]
    # How long a search takes cannot be chosen.
    shortest = 0.5 if family == "subset-sum" else 0.8
    assert shortest * size - 80 < statistics.median(lengths) < 1.1 * size
    assert max(lengths) < 1.2 * size + 100


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_document_fits_into_a_row_and_its_prompt_into_a_small_budget(family: str) -> None:
    for seed in range(40):
        example = draw(family, LONGEST, seed)
        assert len(example.prompt) + len(example.reasoning) < 7800
        assert len(example.prompt) < 0.16 * LONGEST


@pytest.mark.parametrize("family", FAMILIES)
def test_lines_are_of_many_widths(family: str) -> None:
    lines = [line for seed in range(10) for line in draw(family, 2000, seed).reasoning.split("\n")]
    widths = statistics.multimode([len(line) for line in lines])
    share_of_commonest = sum(len(line) == widths[0] for line in lines) / len(lines)
    assert share_of_commonest < 0.35


def test_constants_of_a_recurrence_are_in_the_prompt_alone() -> None:
    example = draw("recurrence", 3000, seed=1)
    assert len(re.findall(r"[A-Z] is \d+", example.prompt)) == 3
    assert not re.search(r"[A-Z] ?(is|[-+]) ?\d", example.reasoning)


def test_rules_of_a_branching_machine_come_back_after_long_gaps() -> None:
    long_gaps = [_longest_gap(_rule_places(draw("branching", LONGEST, seed))) > 1000 for seed in range(40)]
    assert sum(long_gaps) > 20


def test_results_of_a_ledger_are_needed_long_after_they_were_set() -> None:
    gaps = [_longest_gap(_result_places(draw("ledger", LONGEST, seed))) for seed in range(40)]
    assert statistics.median(gaps) > 1000


def _rule_places(example: Example) -> list[tuple[str, int]]:
    """Which rule is used where."""
    return [
        (line[2], line.start()) for line in re.finditer(r"(?m)^(\d+: \d+) (\w+ (?:small|large))", example.reasoning)
    ]


def _result_places(example: Example) -> list[tuple[str, int]]:
    """Which account's result stands where."""
    return [(line[1], line.start()) for line in re.finditer(r"(?m)^(?:with )?(\w+)=\d+$", example.reasoning)]


def _longest_gap(places: list[tuple[str, int]]) -> int:
    """Characters between two consecutive places of the same key."""
    last: dict[str, int] = {}
    longest = 0
    for key, place in places:
        longest = max(longest, place - last.get(key, place))
        last[key] = place
    return longest
