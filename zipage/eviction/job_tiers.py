"""Which of a job's entries survive whatever their score, and how many of the others are anchors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zipage.config import ScoringOptions
from zipage.engine_messages import CompressionJob
from zipage.eviction.selection import entry_tiers, pinned_after


@dataclass(frozen=True)
class JobTiers:
    """The numbers that selection goes by, the same for every layer and KV head.

    Attributes:
        num_entries: resident entries, of which `keep` survive.
        sinks, recent: the first and the last entries, always kept.
        num_pinned: leading entries that are pinned.
        anchor_entries: anchors to keep, if the higher tiers leave so many.
    """

    num_entries: int
    keep: int
    sinks: int
    recent: int
    num_pinned: int
    anchor_entries: int

    @classmethod
    def of(cls, job: CompressionJob, scoring: ScoringOptions) -> "JobTiers":
        """The tiers of a job."""
        return cls(
            num_entries=job.num_entries,
            keep=job.keep,
            sinks=scoring.sinks,
            recent=scoring.recent_entries(job.keep, job.num_pinned),
            num_pinned=scoring.pinned_entries(job.keep, job.num_pinned),
            anchor_entries=scoring.anchor_entries(job.keep, job.num_pinned),
        )

    @property
    def rest(self) -> range:
        """The entries of the lowest tier, among which scores choose."""
        last = max(self.num_entries - self.recent, 0)
        return range(min(max(self.sinks, self.num_pinned), last), last)

    @property
    def num_higher(self) -> int:
        """Entries of the higher tiers."""
        return self.num_entries - len(self.rest)

    @property
    def num_anchors(self) -> int:
        """Anchors that are kept."""
        return min(self.anchor_entries, max(self.keep - self.num_higher, 0))

    def of_entries(self, device: torch.device) -> Tensor:
        """`entry_tiers` of all entries."""
        return entry_tiers(self.num_entries, self.sinks, self.recent, self.num_pinned, device)

    def pinned_survivors(self) -> int:
        """How many leading survivors are the prompt's, where it is pinned."""
        # Counted on the CPU: what is read back from a GPU waits for all jobs before.
        return pinned_after(self.of_entries(torch.device("cpu")), self.num_pinned, self.keep)
