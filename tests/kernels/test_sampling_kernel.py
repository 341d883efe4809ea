"""Sampling kernels against `zipage.execution.sampling`, token for token on the same logits."""

import math

import pytest
import torch
from sampling_cases import make_state

from zipage.execution.sampling import sample
from zipage.kernels import sampling
from zipage.kernels.sampling import greedy_tokens, sample_tokens

# Sizes at which a small vocabulary takes every path: several groups to a maximum, stretches, tiles and searches.
SMALL_SIZES = {
    "_NUM_GROUPS": 16,
    "_PROGRAM_GROUPS": 8,
    "_GROUP_TILE": 2,
    "_NUM_RANKED": 8,
    "_LOG_CAPACITY": 4,
    "_LOG_FEW": 3,
    "_STRETCH": 64,
    "_TILE": 32,
    "_SEARCH_BITS": 14,
    "_SEARCH_TILE": 128,
}
OPTIONS = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    {"top_p": 0.9},
    {"min_p": 0.1},
    {"top_k": 1},
    {"top_k": 5, "top_p": 0.5, "min_p": 0.3},
    {"temperature": 1e-5},
    {"temperature": 5.0, "top_p": 0.999},
    {"temperature": 2.0, "top_k": 1500, "top_p": 0.99},
    {"temperature": 30.0, "top_p": 0.9, "min_p": 0.4},
    {"temperature": 0.7, "top_p": 1e-9},
    {"temperature": 3.0, "top_k": 100, "min_p": 0.01},
    {"temperature": 1e300, "top_p": 0.5},
    {"min_p": 1.0},
]


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fresh memory holds large numbers."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        tensor.view(torch.uint8).fill_(0x7D)
        return tensor

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def small_sizes(monkeypatch):
    for name, value in SMALL_SIZES.items():
        monkeypatch.setattr(sampling, name, value)


def random_logits(num_rows, vocab_size, device, seed=0, scale=3.0):
    """Random rows with large numbers between them."""
    values = torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale
    padded = torch.full((num_rows, vocab_size + 5), 1e30, device=device)
    padded[:, :vocab_size] = values.to(device)
    return padded[:, :vocab_size]


def make_states(vocab_size, options, first_seed=0):
    return [
        make_state(vocab_size, seed=first_seed + 1000 * row, output_ids=[0] * (row % 4), **row_options)
        for row, row_options in enumerate(options)
    ]


def option_tensors(states, device):
    def column(values, dtype):
        return torch.tensor(values, dtype=dtype, device=device)

    return (
        column([0.0 if state.greedy else state.temperature for state in states], torch.float32),
        column([state.top_k for state in states], torch.int64),
        column([state.top_p for state in states], torch.float64),
        column([state.min_p for state in states], torch.float64),
        column([state.seed for state in states], torch.int64),
        column([state.num_output_tokens for state in states], torch.int64),
    )


def assert_same_tokens(logits, options, first_seed=0):
    states = make_states(logits.shape[1], options, first_seed)
    expected = [token.token_id for token in sample(logits.float().clone(), states)]
    before = logits.clone()
    assert sample_tokens(logits, *option_tensors(states, logits.device)).tolist() == expected
    assert torch.equal(logits, before)


@pytest.mark.parametrize("vocab_size", [1, 40, 9000])
def test_options_of_every_kind(vocab_size, device):
    options = OPTIONS if vocab_size > 40 else OPTIONS[:7]
    assert_same_tokens(random_logits(len(options), vocab_size, device), options)


@pytest.mark.usefixtures("small_sizes")
@pytest.mark.parametrize("scale", [3.0, 0.01])
def test_paths_of_every_kind(scale, device):
    assert_same_tokens(random_logits(len(OPTIONS), 130, device, scale=scale), OPTIONS)


@pytest.mark.usefixtures("small_sizes")
@pytest.mark.parametrize("vocab_size", [8, 9, 16, 17])
def test_as_many_candidates_as_there_is_room_for(vocab_size, device):
    options = [{"top_p": 0.99}, {"top_p": 0.2}, {"top_k": vocab_size - 1}]
    logits = torch.zeros(3, vocab_size, device=device)
    logits[:, -1] = 2.0
    assert_same_tokens(logits, options)


@pytest.mark.usefixtures("small_sizes")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 2},
        {"top_p": 0.7},
        {"top_p": 0.71},
        {"min_p": 0.5},
        {"top_p": 0.5, "min_p": 0.7},
        {"top_p": 0.95, "min_p": 0.5},
        {"top_k": 3, "top_p": 0.7, "min_p": 0.4},
    ],
    ids=str,
)
def test_filters_of_four_tokens_over_many_seeds(options, device):
    logits = torch.tensor([0.2, 0.4, 0.1, 0.3], device=device).log()
    assert_same_tokens(logits.repeat(8, 1), [options] * 8)


@pytest.mark.usefixtures("small_sizes")
@pytest.mark.parametrize("options", [{"top_p": 0.9, "min_p": 0.5}, {"top_k": 35, "top_p": 0.8, "min_p": 0.2}], ids=str)
def test_filters_of_a_search_over_many_seeds(options, device):
    logits = torch.tensor([0.3, 1.0, 0.1, 1.0], device=device).log().repeat(10)
    assert_same_tokens(logits.repeat(4, 1), [options] * 4)


@pytest.mark.usefixtures("small_sizes")
@pytest.mark.parametrize(("vocab_size", "choices"), [(8, 1), (8, 4), (150, 1), (150, 4)])
def test_ties_are_cut_off_from_the_highest_id_down(vocab_size, choices, device):
    options = [{"top_p": 0.5}, {"top_p": 0.75, "temperature": 1e30}, {"top_k": 3}, {"top_k": 100, "top_p": 0.25}]
    values = torch.tensor([-0.0, 0.0, -2.0, 1.0], device=device)
    places = torch.randint(0, choices, (4, vocab_size), generator=torch.Generator().manual_seed(0))
    assert_same_tokens(values[places.to(device)], options)


@pytest.mark.usefixtures("small_sizes")
def test_rows_do_not_depend_on_their_batch(device):
    kinds = [OPTIONS[place] for place in (0, 1, 2, 8, 10)]
    logits = random_logits(5, 70, device, seed=3)
    options = option_tensors(make_states(70, kinds), device)
    together = sample_tokens(logits, *options)
    reordered = sample_tokens(logits.flip(0), *(option.flip(0) for option in options)).flip(0)
    alone = [sample_tokens(logits[row : row + 1], *(option[row : row + 1] for option in options)) for row in range(5)]
    assert torch.equal(together, reordered)
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_half_the_width(dtype, device):
    assert_same_tokens(random_logits(4, 200, device, seed=1).to(dtype), OPTIONS[:4])


@pytest.mark.usefixtures("small_sizes")
@pytest.mark.parametrize("vocab_size", [6, 100])
def test_impossible_tokens_and_rows(vocab_size, device):
    options = [OPTIONS[place] for place in (0, 1, 2, 3, 4, 9)]
    logits = torch.full((6, vocab_size), -math.inf, device=device)
    assert_same_tokens(logits, options)
    logits[:, [2, vocab_size - 1]] = torch.tensor([1.0, 1.25], device=device)
    assert_same_tokens(logits, options)


@pytest.mark.usefixtures("small_sizes")
def test_logits_that_are_not_numbers_give_a_token_of_the_vocabulary(device):
    options = [OPTIONS[place] for place in (0, 1, 2, 3, 4, 9)]
    logits = torch.full((6, 90), math.nan, device=device)
    logits[::2, 20:50] = -math.nan
    logits[::3, 40:60] = 1.0
    tokens = sample_tokens(logits, *option_tensors(make_states(90, options), device))
    assert ((tokens >= 0) & (tokens < 90)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("vocab_size", [1, 5, 2047, 9001])
def test_greedy_takes_the_lowest_of_the_likeliest(vocab_size, dtype, device):
    logits = random_logits(6, vocab_size, device).to(dtype)
    likeliest = torch.randint(0, vocab_size, (6, 3), generator=torch.Generator().manual_seed(1)).to(device)
    logits.scatter_(1, likeliest, 50.0)
    assert torch.equal(greedy_tokens(logits), likeliest.amin(1))


def test_greedy_of_zeros_of_both_signs_and_of_nothing(device):
    logits = torch.full((3, 3000), -math.inf, device=device)
    logits[0, 100:] = 0.0
    logits[0, 99] = -0.0
    logits[1, 7:] = math.nan
    logits[1, 2500] = -1e38
    assert greedy_tokens(logits).tolist() == [99, 2500, 0]


def test_no_rows(device):
    logits = torch.zeros(0, 10, device=device)
    assert greedy_tokens(logits).shape == (0,)
    assert sample_tokens(logits, *option_tensors([], device)).shape == (0,)


def test_captured_graph_follows_its_inputs(device):
    """A graph where there is a CUDA device, repeated calls elsewhere."""
    logits = random_logits(4, 100, device)
    options = option_tensors(make_states(100, OPTIONS[:4]), device)
    results = []

    def step():
        results[:] = [sample_tokens(logits, *options), greedy_tokens(logits)]

    run = step
    step()
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        run = graph.replay
    for index in range(2):
        logits.copy_(random_logits(4, 100, device, seed=10 + index))
        options[-1].add_(1)
        run()
        states = make_states(100, OPTIONS[:4])
        for state, number in zip(states, options[-1].tolist(), strict=True):
            state.num_output_tokens = number
        assert results[0].tolist() == [token.token_id for token in sample(logits.clone(), states)]
        assert torch.equal(results[1], logits.argmax(1))


@pytest.mark.parametrize(
    "logits",
    [torch.zeros(5), torch.zeros(2, 0), torch.zeros(5, 2).t(), torch.zeros(2, 5, dtype=torch.int64)],
    ids=["1D", "empty", "stride", "dtype"],
)
def test_wrong_logits(logits):
    with pytest.raises(ValueError, match="logits"):
        greedy_tokens(logits)
    with pytest.raises(ValueError, match="logits"):
        sample_tokens(logits, *option_tensors(make_states(5, [{}, {}]), "cpu"))


@pytest.mark.parametrize("position", range(6))
def test_wrong_options(position):
    name = ["temperatures", "top_k", "top_p", "min_p", "seeds", "token_indices"][position]
    for wrong in (lambda x: x[:1], lambda x: x.to(torch.int32), lambda x: x.repeat_interleave(2)[::2]):
        options = list(option_tensors(make_states(5, [{}, {}]), "cpu"))
        options[position] = wrong(options[position])
        with pytest.raises(ValueError, match=name):
            sample_tokens(torch.zeros(2, 5), *options)
