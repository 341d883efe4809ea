"""What clients ask for and when: requests that arrive, aborts, preemptions, and jobs that fail."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from tools.simulation.decode_rows import EOS, FIRST_TOKEN
from zipage.engine_messages import AbortTokens, SubmitTokens, TokenRequest
from zipage.sampling_params import SamplingParams


@dataclass(frozen=True)
class Preempt:
    """Has requests preempted without need."""

    uids: list[int]


Event = SubmitTokens | AbortTokens | Preempt


@dataclass(frozen=True)
class Workload:
    """All that happens to an engine from outside.

    Attributes:
        events: with their times in seconds.
        output_lengths: by uid, the output tokens after which the model samples end-of-sequence.
        failing_jobs: the numbers of the jobs that fail, in the order in which they are sent.
    """

    events: list[tuple[float, Event]]
    output_lengths: Mapping[int, int]
    failing_jobs: frozenset[int] = frozenset()

    @property
    def requests(self) -> list[TokenRequest]:
        """All that are submitted, in order."""
        return [request for _, event in self.events if isinstance(event, SubmitTokens) for request in event.requests]


@dataclass(frozen=True)
class Lengths:
    """Numbers of tokens, drawn evenly from `low` to `high`."""

    low: int
    high: int


def generate_workload(
    num_requests: int, prompt: Lengths, output: Lengths, requests_per_second: float, seed: int
) -> Workload:
    """Requests whose prompts have nothing in common.

    All arrive at once where `requests_per_second` is 0, otherwise as a Poisson process. The scheduler knows of outputs
    only that none is longer than `output.high`.
    """
    numbers = random.Random(seed)
    output_lengths, requests, times, time = {}, [], [], 0.0
    for uid in range(num_requests):
        if requests_per_second:
            time += numbers.expovariate(requests_per_second)
        # The first token is nobody else's, so no block is.
        prompt_tokens = [FIRST_TOKEN + uid, *range(1, numbers.randint(prompt.low, prompt.high))]
        requests.append(TokenRequest(uid, prompt_tokens, SamplingParams(max_tokens=output.high, seed=uid), (EOS,)))
        output_lengths[uid] = numbers.randint(output.low, output.high)
        times.append(time)
    if not requests_per_second:
        return Workload([(0.0, SubmitTokens(requests))], output_lengths)
    events: list[tuple[float, Event]] = [
        (time, SubmitTokens([request])) for time, request in zip(times, requests, strict=True)
    ]
    return Workload(events, output_lengths)
