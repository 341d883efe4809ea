"""Logit bias, min_tokens and penalties: what changes single logits before a token is chosen."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zipage.execution.sampling_state import SamplingState

_FLOAT32_MAX = torch.finfo(torch.float32).max


def process_logits(logits: Tensor, states: Sequence[SamplingState]) -> None:
    """Apply logit bias, then `min_tokens`, then the repetition, presence and frequency penalties, in place.

    Args:
        logits: [R, V] float32, changed.
        states: one for each of the R rows.
    """
    _add_bias(logits, states)
    _forbid_stopping(logits, states)
    _penalise(logits, states)


def _add_bias(logits: Tensor, states: Sequence[SamplingState]) -> None:
    biased = [(row, state.bias) for row, state in enumerate(states) if state.bias is not None]
    if biased:
        where = _positions([row for row, _ in biased], [ids for _, (ids, _) in biased])
        logits[where] += torch.cat([values for _, (_, values) in biased])


def _forbid_stopping(logits: Tensor, states: Sequence[SamplingState]) -> None:
    forbidden = [(row, ids) for row, state in enumerate(states) if (ids := state.forbidden_ids) is not None]
    if forbidden:
        logits[_positions([row for row, _ in forbidden], [ids for _, ids in forbidden])] = -math.inf


def _penalise(logits: Tensor, states: Sequence[SamplingState]) -> None:
    """Penalise seen tokens.

    The repetition penalty is that of Keskar et al., "CTRL", 2019, with negative logits multiplied; presence and
    frequency penalties are those of the OpenAI API: `logit - presence * (count > 0) - frequency * count`.
    """
    penalised = [(row, state, state.seen_tokens) for row, state in enumerate(states) if state.seen_tokens is not None]
    if not penalised:
        return
    where = _positions([row for row, _, _ in penalised], [seen.ids for _, _, seen in penalised])
    counts = torch.cat([seen.counts for _, _, seen in penalised])
    options = [(s.repetition_penalty, s.presence_penalty, s.frequency_penalty) for _, s, _ in penalised]
    per_token = _repeat(torch.tensor(options, dtype=logits.dtype), [seen.ids for _, _, seen in penalised])
    repetition, presence, frequency = per_token.unbind(1)

    values = logits[where]
    # The bound keeps a tiny penalty from making a logit infinite, which has no softmax.
    values = torch.where(values > 0, (values / repetition).clamp(max=_FLOAT32_MAX), values * repetition)
    logits[where] = values - frequency * counts - presence * (counts > 0)


def _positions(rows: Sequence[int], ids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Index of the logits of token ids `ids[i]` ([n_i] int64) in row `rows[i]`, for all i."""
    return _repeat(torch.tensor(rows), ids), torch.cat(list(ids))


def _repeat(values: Tensor, ids: Sequence[Tensor]) -> Tensor:
    """Repeat `values[i]` once for every element of `ids[i]`, on the device of `ids`."""
    device = ids[0].device
    lengths = [len(row_ids) for row_ids in ids]
    # Given the output's size, a CUDA device need not be waited for.
    return values.to(device).repeat_interleave(torch.tensor(lengths, device=device), dim=0, output_size=sum(lengths))
