"""Cases of the kernel benchmark: norm, activation, small products, writing to cache and query slots, and sampling."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.kernel_work import Work, num_copies, scaled_error, unequal
from zipage.execution.sampling import sample
from zipage.execution.sampling_state import SamplingState
from zipage.kernels import reference
from zipage.kernels.rms_norm import rms_norm
from zipage.kernels.sampling import greedy_tokens, sample_tokens
from zipage.kernels.silu_multiply import silu_multiply
from zipage.kernels.small_product import add_small_product, gated_small_product, product_counters, small_product
from zipage.kernels.write_kv import write_kv
from zipage.models.rope import rotary_table, rotate
from zipage.models.rope_config import RopeConfig
from zipage.sampling_params import SamplingParams

DTYPE = torch.bfloat16
# Two roundings to bfloat16 that fall apart.
ROUNDING = 2.0**-8
EPS = 1e-6


def norm(device: torch.device, tokens: int, size: int) -> Work:
    """RMS norm."""
    weight = torch.randn(size, dtype=DTYPE, device=device)
    num_bytes = 2 * tokens * size * DTYPE.itemsize
    inputs = torch.randn(num_copies(num_bytes, device), tokens, size, dtype=DTYPE, device=device)

    def check() -> float:
        expected = F.rms_norm(inputs[0].float(), (size,), weight.float(), EPS)
        return scaled_error(rms_norm(inputs[0], weight, EPS), expected, ROUNDING)

    return Work([partial(rms_norm, rows, weight, EPS) for rows in inputs], check, num_bytes)


def activation(device: torch.device, tokens: int, size: int) -> Work:
    """SiLU and multiplication."""
    num_bytes = 3 * tokens * size * DTYPE.itemsize
    inputs = torch.randn(num_copies(num_bytes, device), tokens, 2 * size, dtype=DTYPE, device=device)

    def check() -> float:
        gate, up = inputs[0].float().chunk(2, dim=1)
        return scaled_error(silu_multiply(inputs[0]), F.silu(gate) * up, ROUNDING)

    return Work([partial(silu_multiply, rows) for rows in inputs], check, num_bytes)


def product(device: torch.device, tokens: int, outputs: int, columns: int, follows: str) -> Work:
    """A product of few rows, and what follows it: `add` to the residual stream, `gate`, or `nothing`."""
    rows = 2 * outputs if follows == "gate" else outputs
    num_bytes = rows * columns * DTYPE.itemsize
    weights = torch.randn(num_copies(num_bytes, device), rows, columns, dtype=DTYPE, device=device).mul_(columns**-0.5)
    inputs = torch.randn(tokens, columns, dtype=DTYPE, device=device)
    residual, counters = torch.zeros(tokens, outputs, dtype=DTYPE, device=device), product_counters(device)

    def call(copy: int) -> Tensor:
        if follows == "gate":
            return gated_small_product(inputs, weights[copy], counters)
        if follows == "nothing":
            return small_product(inputs, weights[copy], counters)
        add_small_product(residual, inputs, weights[copy], counters)
        return residual

    def check() -> float:
        expected = F.linear(inputs.float(), weights[0].float())
        if follows == "gate":
            gate, up = expected.chunk(2, dim=1)
            expected = F.silu(gate) * up
        return scaled_error(call(0), expected, 2 * ROUNDING)

    return Work([partial(call, copy) for copy in range(len(weights))], check, num_bytes, 2 * tokens * rows * columns)


def write(device: torch.device, tokens: int, heads: int, kv_heads: int, head_dim: int, block_size: int) -> Work:
    """RoPE and QK-norm, and the write to random slots of a cache and, of queries, to random rows of query slots."""
    width = (heads + 2 * kv_heads) * head_dim
    num_bytes = tokens * (2 * width + (heads + 1) * head_dim) * DTYPE.itemsize
    copies = num_copies(num_bytes, device)
    num_blocks = copies * -(-tokens // block_size) + 1
    caches = torch.zeros(2, num_blocks, kv_heads, block_size, head_dim, dtype=DTYPE, device=device)
    slots = torch.randperm(num_blocks * block_size, device=device)[: copies * tokens].view(copies, tokens)
    qkv = torch.randn(copies, tokens, width, dtype=DTYPE, device=device)
    positions = torch.randint(0, 8192, (tokens,), device=device)
    table = rotary_table(RopeConfig(theta=1e6, scaling=None), head_dim, 8192, DTYPE, device)
    weight = torch.rand(heads + kv_heads, head_dim, device=device).add(0.5).to(DTYPE)
    recorded = torch.zeros(copies * tokens, 1, heads, head_dim, dtype=DTYPE, device=device)
    rows = torch.randperm(copies * tokens, device=device).view(copies, tokens)

    def call(copy: int) -> Tensor:
        cache = (caches[0], caches[1], slots[copy])
        return write_kv(qkv[copy], *cache, positions, table, weight, EPS, None, recorded, rows[copy])

    def check() -> float:
        rotated, value = qkv[0].view(tokens, -1, head_dim).float().split((heads + kv_heads, kv_heads), dim=1)
        cosines, sines = table[positions].float().unsqueeze(1).chunk(2, dim=2)
        rotated = rotate(F.rms_norm(rotated, (head_dim,), None, EPS) * weight.float(), cosines, sines)
        expected = torch.zeros_like(caches)
        key = rotated[:, heads:].to(DTYPE)
        reference.write_kv(expected[0], expected[1], key, value.to(DTYPE), slots[0])
        query = call(0)
        errors = [scaled_error(query, rotated[:, :heads], ROUNDING), scaled_error(caches[0], expected[0], ROUNDING)]
        expected_queries = torch.zeros_like(recorded)
        reference.write_queries(expected_queries, query, rows[0])
        return max(*errors, unequal(caches[1], expected[1]), unequal(recorded, expected_queries))

    return Work([partial(call, copy) for copy in range(copies)], check, num_bytes)


def greedy(device: torch.device, batch: int, vocabulary: int) -> Work:
    """The likeliest tokens."""
    num_bytes = batch * (vocabulary * 4 + 8)
    logits = torch.randn(num_copies(num_bytes, device), batch, vocabulary, device=device)
    calls = [partial(greedy_tokens, rows) for rows in logits]
    return Work(calls, lambda: unequal(greedy_tokens(logits[0]), logits[0].argmax(1)), num_bytes)


def draw(
    device: torch.device, batch: int, vocabulary: int, spread: float, temperature: float, top_k: int, top_p: float
) -> Work:
    """Draws from logits of standard deviation `spread`, with the same options for every row."""
    num_bytes = batch * (vocabulary * 4 + 8)
    logits = torch.randn(num_copies(num_bytes, device), batch, vocabulary, device=device).mul_(spread)
    params = [
        SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=0.0, repetition_penalty=1.0, seed=seed)
        for seed in range(batch)
    ]
    states = [SamplingState(each, [], [], (), vocabulary, device) for each in params]
    options = (
        torch.full((batch,), temperature, dtype=torch.float32, device=device),
        torch.full((batch,), states[0].top_k, dtype=torch.int64, device=device),
        torch.full((batch,), top_p, dtype=torch.float64, device=device),
        torch.zeros(batch, dtype=torch.float64, device=device),
        torch.arange(batch, device=device),
        torch.zeros(batch, dtype=torch.int64, device=device),
    )

    def check() -> float:
        expected = torch.tensor([token.token_id for token in sample(logits[0].clone(), states)], device=device)
        return unequal(sample_tokens(logits[0], *options), expected)

    return Work([partial(sample_tokens, rows, *options) for rows in logits], check, num_bytes)
