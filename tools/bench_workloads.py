"""Workloads of the benchmarks: requests that arrive together, and the KV pool that they share."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """Random prompts and outputs of a fixed length.

    Attributes:
        shape: of the model, where no model directory is given.
        pool_gib: KV cache in GiB (2**30 bytes).
        requests, prompt_tokens, output_tokens: how many, and how long.
        shared_tokens: leading tokens that all prompts have in common.
        reference: output tokens per second of vLLM 0.26.0 (FA3, CUDA graphs, full KV) on one H200 with such a pool;
            None where it was not measured.
    """

    shape: str
    pool_gib: float
    requests: int
    prompt_tokens: int
    output_tokens: int
    shared_tokens: int = 0
    reference: float | None = None


WORKLOADS = {
    "A": Workload("qwen3-0.6b", 4, 128, 256, 2048, reference=8281),
    "B": Workload("qwen3-8b", 10, 128, 256, 3072, reference=4140),
    "short-long": Workload("qwen3-0.6b", 2, 64, 128, 2048, shared_tokens=64),
    "long-short": Workload("qwen3-0.6b", 2, 64, 3072, 256, shared_tokens=1536),
    "long-long": Workload("qwen3-0.6b", 2, 64, 2048, 2048, shared_tokens=1024),
}


def random_prompts(workload: Workload, seed: int, vocab_size: int) -> list[list[int]]:
    """Prompts of token ids; the same ones for the same seed and every vocabulary of 100,000 and more."""
    generator = random.Random(seed)
    # The first ids of a vocabulary may be special ones.
    token_ids = range(min(100, vocab_size // 2), min(100_000, vocab_size))

    def tokens(count: int) -> list[int]:
        return [generator.choice(token_ids) for _ in range(count)]

    shared = tokens(workload.shared_tokens)
    return [shared + tokens(workload.prompt_tokens - workload.shared_tokens) for _ in range(workload.requests)]
