"""Random numbers that are a function of seed and index."""

import pytest

from zipage.execution.random_numbers import uniform


def split_mix(state, count):
    """The sequential generator, written as published."""
    outputs = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        outputs.append(z ^ (z >> 31))
    return outputs


def chi_square(counts):
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


def test_generator_of_this_test_gives_the_published_sequence():
    assert split_mix(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**63 - 1, 2**63 + 127])
def test_is_the_stream_that_starts_at_the_mixed_seed(seed):
    [start] = split_mix(seed, 1)
    expected = [output // 2**11 / 2**53 for output in split_mix(start, 50)]
    assert [uniform(seed, index) for index in range(50)] == expected


@pytest.mark.parametrize(
    "numbers",
    [
        [uniform(7, index) for index in range(20_000)],
        [uniform(seed, 0) for seed in range(20_000)],
        [uniform(seed, 100 - seed % 100) for seed in range(20_000)],
    ],
    ids=["one seed", "neighbouring seeds", "diagonal"],
)
def test_numbers_are_uniform(numbers):
    assert all(0 <= number < 1 for number in numbers)
    # 63 degrees of freedom: 115 is exceeded once in 10**4.
    assert chi_square([sum(number * 64 // 1 == bucket for number in numbers) for bucket in range(64)]) < 115


@pytest.mark.parametrize(("seed_step", "index_step"), [(0, 1), (1, 0), (1, 1), (1, -1)])
def test_neighbours_are_independent(seed_step, index_step):
    cells = [0] * 64
    for seed in range(100):
        for index in range(1, 101):
            number, neighbour = uniform(seed, index), uniform(seed + seed_step, index + index_step)
            cells[int(number * 8) * 8 + int(neighbour * 8)] += 1
    assert chi_square(cells) < 115


def test_seeds_and_indices_give_different_numbers():
    numbers = {uniform(seed, index) for seed in range(100) for index in range(100)}
    assert len(numbers) == 10_000
