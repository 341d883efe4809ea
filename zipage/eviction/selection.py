"""Which entries outrank every score, and what that means for a pinned prompt."""

import torch

ALWAYS_KEPT = 2
PINNED = 1


def entry_tiers(
    num_entries: int, sinks: int, recent: int, num_pinned: int, device: torch.device | None = None
) -> torch.Tensor:
    """The tier of each entry: sinks and recent entries above the pinned prompt, the prompt above the rest.

    Args:
        num_entries: resident entries, n.
        sinks: the first entries, `ALWAYS_KEPT`.
        recent: the last entries, `ALWAYS_KEPT`.
        num_pinned: the leading entries that are `PINNED`.
        device: of the result.

    Returns:
        `[n]` int64.
    """
    tiers = torch.zeros(num_entries, dtype=torch.int64, device=device)
    tiers[:num_pinned] = PINNED
    tiers[:sinks] = ALWAYS_KEPT
    tiers[max(num_entries - recent, 0) :] = ALWAYS_KEPT
    return tiers


def pinned_after(tiers: torch.Tensor, num_pinned: int, keep: int) -> int:
    """How many leading survivors are the prompt's once `keep` entries have been selected by `tiers`.

    The number is the same for every head, also where the prompt does not fit and scores choose among its entries.

    Args:
        tiers: `[n]`, of `entry_tiers`, at most `keep` of them `ALWAYS_KEPT`.
        num_pinned: the leading entries that are the prompt's before.
        keep: entries that survive.
    """
    always_kept = tiers == ALWAYS_KEPT
    prompts_own = int(always_kept[:num_pinned].sum())
    return prompts_own + min(num_pinned - prompts_own, keep - int(always_kept.sum()))
