"""The next token of every row from its logits: the likeliest, or a draw under temperature, top_k, top_p and min_p.

The tokens are those that `zipage.execution.sampling` chooses from the same logits. Whatever is decided there is decided
from sums of integers, and these kernels add the same integers; a row's token depends on nothing but its own numbers.

The vocabulary is read twice and not sorted:

1. `maxima_kernel` takes the maxima of groups of logits. At least n tokens reach the n-th largest maximum, and rarely
   many more. `bound_kernel` finds this bound and, from the same maxima, the likeliest token, which is all that a greedy
   batch needs.
2. `weigh_kernel` sums the masses of stretches of the vocabulary and collects the candidates: what reaches the bound.
3. `draw_kernel` draws. Without top_k and top_p it does so in the order of ids, in the one stretch that the random
   number falls into; otherwise from the candidates, sorted. They are the likeliest tokens of the vocabulary, so they
   decide the draw if there are top_k of them or if they reach top_p.
4. `search_kernel` draws for the rows that have too few candidates, or too many to sort.
"""

import torch
import triton
from torch import Tensor

from zipage.kernels.sampling_candidates import bound_kernel, likeliest_kernel, maxima_kernel, weigh_kernel
from zipage.kernels.sampling_draws import draw_kernel
from zipage.kernels.sampling_search import search_kernel

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Groups of logits in a row, how many of them one program takes, and how many logits of each at a time.
_NUM_GROUPS = 2048
_PROGRAM_GROUPS = 128
_GROUP_TILE = 16
# Tokens that are ranked for top_p, which is also the largest top_k without a search.
_NUM_RANKED = 1024
# Candidates that a row has room for, and how many are sorted in a smaller network; powers of two.
_LOG_CAPACITY = 11
_LOG_FEW = 8
# Logits whose masses one program sums, and how many of them at a time.
_STRETCH = 4096
_TILE = 1024
# Bits of a key that one pass of a search finds, and the logits it looks at at a time.
_SEARCH_BITS = 10
_SEARCH_TILE = 4096


def greedy_tokens(logits: Tensor) -> Tensor:
    """The likeliest token of every row, of equals the lowest id.

    Args:
        logits: `[B, V]` float32, bfloat16 or float16, rows contiguous.

    Returns:
        `[B]` int64. A row with nothing above -inf gives token 0; NaN counts as -inf.

    Raises:
        ValueError: logits of another shape, dtype or layout.
    """
    _check_logits(logits)
    num_rows = logits.shape[0]
    tokens = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows:
        likeliest_kernel[(num_rows,)](*_group_maxima(logits), tokens, num_groups=_NUM_GROUPS, num_warps=4)
    return tokens


def sample_tokens(
    logits: Tensor,
    temperatures: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    token_indices: Tensor,
) -> Tensor:
    """Choose one token for each row, as `zipage.execution.sampling.sample` does.

    Equally likely tokens are cut off from the highest id down. The random number of a row is number `token_index` of
    the stream `seed` of `zipage.execution.random_numbers`.

    Args:
        logits: `[B, V]` float32, bfloat16 or float16, rows contiguous; not changed.
        temperatures: `[B]` float32, 0 for the likeliest token, otherwise a normal number.
        top_k: `[B]` int64, at least 1; V and more is off.
        top_p: `[B]` float64, in (0, 1]; 1 is off.
        min_p: `[B]` float64, in [0, 1]; 0 is off.
        seeds: `[B]` int64, at least 0.
        token_indices: `[B]` int64, output tokens before this one.

    Returns:
        `[B]` int64. What a row with NaN gives is undefined, but in the vocabulary.

    Raises:
        ValueError: logits of another shape, dtype or layout, or options of another shape or dtype.
    """
    _check_logits(logits)
    num_rows = logits.shape[0]
    options = {
        "temperatures": (temperatures, torch.float32),
        "top_k": (top_k, torch.int64),
        "top_p": (top_p, torch.float64),
        "min_p": (min_p, torch.float64),
        "seeds": (seeds, torch.int64),
        "token_indices": (token_indices, torch.int64),
    }
    for name, (option, dtype) in options.items():
        if option.shape != (num_rows,) or option.dtype != dtype or not option.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous [{num_rows}] {dtype}, not {tuple(option.shape)} {option.dtype}"
            )
    tokens = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows:
        _sample_into(tokens, logits, temperatures, top_k, top_p, min_p, (seeds, token_indices))
    return tokens


def _check_logits(logits: Tensor) -> None:
    if logits.dim() != 2 or not logits.shape[1] or logits.stride(1) != 1 or logits.dtype not in _DTYPES:
        raise ValueError(
            "logits must be [B, V] float32, bfloat16 or float16 with contiguous rows, "
            f"not {tuple(logits.shape)} {logits.dtype} of strides {logits.stride()}"
        )


def _group_maxima(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each group, `[B, _NUM_GROUPS]` float32, and its token id, int32."""
    num_rows, vocab_size = logits.shape
    maxima = torch.empty(num_rows, _NUM_GROUPS, dtype=torch.float32, device=logits.device)
    maxima_ids = torch.empty(num_rows, _NUM_GROUPS, dtype=torch.int32, device=logits.device)
    maxima_kernel[(num_rows, _NUM_GROUPS // _PROGRAM_GROUPS)](
        logits,
        maxima,
        maxima_ids,
        logits.stride(0),
        vocab_size=vocab_size,
        num_groups=_NUM_GROUPS,
        program_groups=_PROGRAM_GROUPS,
        tile_size=_GROUP_TILE,
        num_warps=2,
    )
    return maxima, maxima_ids


def _sample_into(
    tokens: Tensor,
    logits: Tensor,
    temperatures: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    stream: tuple[Tensor, Tensor],
) -> None:
    """`sample_tokens` of at least one row, with the arguments checked; `stream` is seeds and token indices."""
    num_rows, vocab_size = logits.shape
    num_stretches = triton.cdiv(vocab_size, _STRETCH)

    def scratch(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(num_rows, *shape, dtype=dtype, device=logits.device)

    highest, bounds, counts = scratch(torch.float32), scratch(torch.int32), scratch(torch.int32)
    candidates, masses = scratch(torch.int64, 1 << _LOG_CAPACITY), scratch(torch.int64, num_stretches)
    bound_kernel[(num_rows,)](
        *_group_maxima(logits),
        top_k,
        tokens,
        highest,
        bounds,
        counts,
        num_groups=_NUM_GROUPS,
        max_ranked=_NUM_RANKED,
        num_warps=4,
    )
    vocabulary = (logits, logits.stride(0), highest)
    filters = (temperatures, top_k, top_p, min_p)
    weigh_kernel[(num_rows, num_stretches)](
        *vocabulary,
        *filters,
        bounds,
        counts,
        candidates,
        masses,
        vocab_size=vocab_size,
        log_capacity=_LOG_CAPACITY,
        stretch_size=_STRETCH,
        tile_size=_TILE,
        num_warps=4,
    )
    draw_kernel[(num_rows,)](
        *vocabulary,
        *filters,
        *stream,
        counts,
        candidates,
        masses,
        tokens,
        vocab_size=vocab_size,
        log_few=_LOG_FEW,
        log_capacity=_LOG_CAPACITY,
        num_stretches=num_stretches,
        max_stretches=triton.next_power_of_2(num_stretches),
        stretch_size=_STRETCH,
        tile_size=_TILE,
        num_warps=8,
    )
    search_kernel[(num_rows,)](
        *vocabulary,
        *filters,
        *stream,
        counts,
        scratch(torch.int64, 1 << _SEARCH_BITS),
        tokens,
        vocab_size=vocab_size,
        id_bits=max(vocab_size - 1, 1).bit_length(),
        digit_bits=_SEARCH_BITS,
        tile_size=_SEARCH_TILE,
        num_warps=16,
    )
