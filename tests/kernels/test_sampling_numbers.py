"""Masses and random numbers of the sampling kernels against those of `zipage.execution`."""

import math

import pytest
import torch
import triton
import triton.language as tl

from zipage.execution.probability_mass import probability_masses, relative_logits
from zipage.execution.random_numbers import uniform
from zipage.kernels import sampling_numbers


@triton.jit
def _masses_kernel(logits, highest, temperature, masses, size: tl.constexpr):
    numbers = tl.arange(0, size)
    values = sampling_numbers.token_masses(tl.load(logits + numbers), highest, temperature)
    tl.store(masses + numbers, values)


@triton.jit
def _targets_kernel(seeds, token_indices, totals, targets, size: tl.constexpr):
    numbers = tl.arange(0, size)
    seed, token_index = tl.load(seeds + numbers), tl.load(token_indices + numbers)
    tl.store(targets + numbers, sampling_numbers.draw_target(seed, token_index, tl.load(totals + numbers)))


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_masses_are_those_of_the_reference(temperature, device):
    size = 1 << 14
    logits = -torch.rand(size, generator=torch.Generator().manual_seed(0)).to(device) * 30
    logits[:2] = torch.tensor([0.0, -math.inf])
    masses = torch.empty(size, dtype=torch.int64, device=device)
    highest = logits.amax().item()
    _masses_kernel[(1,)](logits, highest, temperature, masses, size=size)
    expected = probability_masses(relative_logits(logits[None]).div_(torch.tensor([[temperature]], device=device)))[0]
    if device.type == "cuda":
        assert torch.equal(masses, expected)
    else:
        # NumPy's exponential and PyTorch's differ in the last bits.
        torch.testing.assert_close(masses.double(), expected.double(), rtol=4e-7, atol=1)
    assert masses[:2].tolist() == expected[:2].tolist() == [1 << 40, 0]


def test_random_numbers_are_those_of_the_reference(device):
    seeds = [0, 1, 12345, 2**62 + 7, 2**63 - 1] * 25
    pairs = [(seed, (seed + 31 * place) % 10**6) for place, seed in enumerate(seeds)] + [(7, 0)] * 3
    columns = torch.tensor(pairs, device=device).T.contiguous()
    # At this total a target is the random number itself, in units of its last bit.
    totals = torch.full((128,), 2**53, device=device)
    targets = torch.empty(128, dtype=torch.int64, device=device)
    _targets_kernel[(1,)](columns[0], columns[1], totals, targets, size=128)
    assert targets.tolist() == [int(uniform(seed, index) * 2**53) for seed, index in pairs]
