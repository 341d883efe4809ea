"""Which of a job's entries survive whatever their score, and how many of the others are anchors."""

import torch
from torch import Tensor

from zipage.config import ScoringOptions
from zipage.engine_messages import CompressionJob
from zipage.eviction.selection import anchors_to_keep, entry_tiers, pinned_after, rest_of_entries


def num_pinned(job: CompressionJob, scoring: ScoringOptions) -> int:
    """Leading entries that are pinned."""
    return job.num_pinned if scoring.pin_prompt else 0


def tiers(job: CompressionJob, scoring: ScoringOptions, device: torch.device) -> Tensor:
    """`entry_tiers` of the job's entries."""
    recent = scoring.recent_entries(job.keep, job.num_pinned)
    return entry_tiers(job.num_entries, scoring.sinks, recent, num_pinned(job, scoring), device)


def rest(job: CompressionJob, scoring: ScoringOptions) -> range:
    """The entries of which scores choose some."""
    recent = scoring.recent_entries(job.keep, job.num_pinned)
    return rest_of_entries(job.num_entries, scoring.sinks, recent, num_pinned(job, scoring))


def num_anchors(job: CompressionJob, scoring: ScoringOptions) -> int:
    """Anchors that each layer and KV head keeps."""
    return anchors_to_keep(scoring, job.num_entries, job.keep, num_pinned(job, scoring))


def pinned_survivors(job: CompressionJob, scoring: ScoringOptions) -> int:
    """How many leading survivors of a job are the prompt's, where the prompt is pinned."""
    # Counted on the CPU: what is read back from a GPU waits for all jobs before.
    return pinned_after(tiers(job, scoring, torch.device("cpu")), num_pinned(job, scoring), job.keep)
