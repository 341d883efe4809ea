"""Choice of the next token of every row from its logits."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zipage.engine_messages import SampledToken
from zipage.execution.logit_processing import process_logits
from zipage.execution.probability_mass import (
    FULL_MASS,
    draw,
    log_mass,
    probability_masses,
    rank_tokens,
    relative_logits,
)
from zipage.execution.sampling_state import SamplingState

# Logits that are worked on at a time, at about 40 bytes of scratch memory each. A CPU gains from staying in its cache.
_CPU_STRIDE = 1 << 20
_GPU_STRIDE = 1 << 23

# Tokens that are ranked first for top_p; the whole vocabulary is ranked only where these do not reach p.
_NUCLEUS_WIDTH = 1024


@torch.inference_mode()
def sample(logits: Tensor, states: Sequence[SamplingState]) -> list[SampledToken]:
    """Choose one token for each row.

    Log-probabilities, where asked for, are those of the raw logits. Then come logit bias, `min_tokens`, the repetition
    penalty, the presence and frequency penalties, and either the likeliest token (temperature 0; the lowest id of
    equals) or a draw. The draw filters in the order of transformers: temperature, top_k, top_p over what top_k left,
    min_p relative to the likeliest token. Equally likely tokens are cut off from the highest id down. A row's result
    depends on nothing but its own logits and state; the states are not changed.

    Args:
        logits: [R, V] float32, changed in place.
        states: one for each of the R rows.

    Returns:
        R sampled tokens.
    """
    if not any(state.changes_logits or state.num_logprobs is not None or not state.greedy for state in states):
        return [SampledToken(token_id=token_id) for token_id in logits.argmax(dim=1).tolist()]
    tokens: list[SampledToken] = []
    stride = max(1, (_CPU_STRIDE if logits.device.type == "cpu" else _GPU_STRIDE) // logits.shape[1])
    for start in range(0, len(states), stride):
        tokens += _sample_rows(logits[start : start + stride], states[start : start + stride])
    return tokens


def _sample_rows(logits: Tensor, states: Sequence[SamplingState]) -> list[SampledToken]:
    asked = [row for row, state in enumerate(states) if state.num_logprobs is not None]
    raw_logits = logits[asked]
    process_logits(logits, states)
    token_ids = _choose(logits, states)
    tokens = [SampledToken(token_id=token_id) for token_id in token_ids.tolist()]
    if asked:
        counts = [state.num_logprobs for state in states if state.num_logprobs is not None]
        for row, token in zip(asked, _with_logprobs(raw_logits, token_ids[asked], counts), strict=True):
            tokens[row] = token
    return tokens


def _choose(logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """Token ids [R] int64 from processed logits [R, V]."""
    token_ids = logits.argmax(dim=1)
    ranked = [row for row, state in enumerate(states) if state.needs_ranking]
    unranked = [row for row, state in enumerate(states) if not state.greedy and not state.needs_ranking]
    if ranked:
        token_ids[ranked] = _draw_ranked(logits[ranked], [states[row] for row in ranked], _NUCLEUS_WIDTH)
    if unranked:
        token_ids[unranked] = _draw_unranked(logits[unranked], [states[row] for row in unranked])
    return token_ids


def _draw_unranked(logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """Draw token ids [R] int64 under temperature and min_p."""
    masses = _masses(logits, states)
    if any(state.min_p for state in states):
        masses.masked_fill_(masses < _min_masses(states, logits.device), 0)
    return draw(masses, _uniforms(states, logits.device))


def _draw_ranked(logits: Tensor, states: Sequence[SamplingState], nucleus_width: int) -> Tensor:
    """Draw token ids [R] int64 under temperature, top_k, top_p and min_p.

    Where top_k is off, only the `nucleus_width` likeliest tokens are ranked at first. Masses are integers, so the rows
    for which that is enough get exactly what ranking the whole vocabulary would give.
    """
    vocab_size, device = logits.shape[1], logits.device
    width = min(vocab_size, max(s.top_k if s.top_k < vocab_size else nucleus_width for s in states))
    top_k = torch.tensor([[state.top_k] for state in states], device=device)
    top_p = torch.tensor([[state.top_p] for state in states], dtype=torch.float64, device=device)

    masses = _masses(logits, states)
    ranked_ids = rank_tokens(logits, width)
    ranked = masses.gather(1, ranked_ids)
    ranked.masked_fill_(torch.arange(width, device=device) >= top_k, 0)
    cumulative = ranked.cumsum(dim=1)
    total = torch.where(top_k < vocab_size, cumulative[:, -1:], masses.sum(dim=1, keepdim=True))
    # Rounded up, so that the likeliest token stays however small p is.
    needed = (top_p * total).ceil().to(torch.int64)
    outside = (cumulative - ranked >= needed) | (ranked < _min_masses(states, device))
    columns = draw(ranked.masked_fill(outside, 0), _uniforms(states, device))
    token_ids = ranked_ids.gather(1, columns.unsqueeze(1)).squeeze(1)

    if width < vocab_size:
        # Rows with top_k are ranked as far as they need; their sum may only seem short, by the rounding of float64.
        missing = (cumulative[:, -1:] < needed) & (top_k == vocab_size)
        short = missing.squeeze(1).nonzero().squeeze(1).tolist()
        if short:
            token_ids[short] = _draw_ranked(logits[short], [states[row] for row in short], vocab_size)
    return token_ids


def _masses(logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """Probability masses [R, V] int64 after temperature."""
    temperature = torch.tensor([[state.temperature] for state in states], dtype=logits.dtype, device=logits.device)
    # Taken relative to the highest first, the likeliest token stays finite at any temperature.
    return probability_masses(relative_logits(logits).div_(temperature))


def _min_masses(states: Sequence[SamplingState], device: torch.device) -> Tensor:
    """The least mass [R, 1] int64 that min_p leaves in place."""
    return torch.tensor([[math.ceil(state.min_p * FULL_MASS)] for state in states], device=device)


def _uniforms(states: Sequence[SamplingState], device: torch.device) -> Tensor:
    return torch.tensor([state.next_uniform() for state in states], dtype=torch.float64, device=device)


def _with_logprobs(logits: Tensor, token_ids: Tensor, counts: Sequence[int]) -> list[SampledToken]:
    """Sampled tokens with log-probabilities.

    Args:
        logits: [R, V] float32, raw.
        token_ids: [R] int64, the sampled tokens.
        counts: how many of the likeliest tokens to list for each row.
    """
    relative = relative_logits(logits)
    log_normaliser = log_mass(probability_masses(relative).sum(dim=1, keepdim=True))
    width = min(max(counts), logits.shape[1])
    listed = token_ids.unsqueeze(1)
    if width:
        listed = torch.cat([listed, rank_tokens(logits, width)], dim=1)
    logprobs = (relative.gather(1, listed) - log_normaliser).tolist()
    return [
        SampledToken(token_id=ids[0], logprob=values[0], top=list(zip(ids[1:], values[1:], strict=True))[:count])
        for ids, values, count in zip(listed.tolist(), logprobs, counts, strict=True)
    ]
