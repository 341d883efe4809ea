"""Resolved sampling parameters and slow, obvious formulations of sampling for the tests."""

import math
from itertools import accumulate

import torch

from zipage.execution.sampling import sample
from zipage.execution.sampling_state import SamplingState
from zipage.sampling_params import SamplingParams

NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 0}


def resolved(**options):
    return SamplingParams(**{**NEUTRAL, **options})


def make_state(vocab_size, *, prompt_ids=(), output_ids=(), eos_token_ids=(), **options):
    return SamplingState(
        resolved(**options), list(prompt_ids), list(output_ids), tuple(eos_token_ids), vocab_size, torch.device("cpu")
    )


def state_with_uniform(vocab_size, number, **options):
    """A state whose next random number is `number`."""
    state = make_state(vocab_size, **options)
    state.next_uniform = lambda: number
    return state


def measured_distribution(logits, steps=512, **options):
    """Share of `steps` evenly spaced random numbers that give each token; exact to 1 / steps per token."""
    states = [state_with_uniform(len(logits), (i + 0.5) / steps, **options) for i in range(steps)]
    tokens = [token.token_id for token in sample(torch.tensor([logits] * steps, dtype=torch.float32), states)]
    return [tokens.count(token_id) / steps for token_id in range(len(logits))]


def likeliest_first(logits):
    return sorted(range(len(logits)), key=lambda token_id: (-logits[token_id], token_id))


def softmax(logits):
    highest = max(logits)
    weights = [math.exp(x - highest) for x in logits]
    total = sum(weights)
    return [weight / total for weight in weights]


def reference_distribution(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Probabilities after temperature, top_k, top_p and min_p, and the least distance to a limit of top_p or min_p."""
    order = likeliest_first(logits)
    if top_k:
        order = order[:top_k]
    probabilities = softmax([logits[token_id] / temperature for token_id in order])
    before = list(accumulate(probabilities, initial=0.0))[:-1]
    kept = [rank for rank in range(len(order)) if rank == 0 or top_p == 1 or before[rank] < top_p]
    floor = min_p * probabilities[0]
    margin = min([abs(x - top_p) for x in before[1:]] + [abs(p - floor) for p in probabilities[1:]] + [1.0])
    kept = [rank for rank in kept if probabilities[rank] >= floor]
    total = sum(probabilities[rank] for rank in kept)
    result = [0.0] * len(logits)
    for rank in kept:
        result[order[rank]] = probabilities[rank] / total
    return result, margin
