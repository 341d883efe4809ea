"""What changes over the course of training: the lengths of traces and the learning rate."""

import math
import random

SHORTEST, LONGEST = 150, 6000
FIRST_CEILING = 400
GROWING_SHARE = 0.4
"""Of all steps, in which the longest trace grows from `FIRST_CEILING` to `LONGEST`, by a constant factor each step."""

WARMUP_STEPS = 200
FINAL_RATE_SHARE = 0.02


def longest_trace(progress: float) -> int:
    """The most characters of reasoning that are asked for, at a share of all steps in [0, 1]."""
    grown = min(1.0, progress / GROWING_SHARE)
    return round(FIRST_CEILING * (LONGEST / FIRST_CEILING) ** grown)


def trace_size(rng: random.Random, progress: float) -> int:
    """A length from `SHORTEST` to `longest_trace(progress)`, all equally likely."""
    return rng.randint(SHORTEST, longest_trace(progress))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then half a cosine down to 2% of `peak` at the last of `steps`."""
    warmup = min(WARMUP_STEPS, max(1, steps // 10))
    if step < warmup:
        return peak * (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    return peak * (FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * (1 + math.cos(math.pi * share)) / 2)
