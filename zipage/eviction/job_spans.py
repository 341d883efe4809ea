"""What the compression worker's device does, as spans of the trace."""

from collections.abc import Sequence

from zipage.engine_messages import CompressionJob, SwapIn, SwapOut
from zipage.tracing import Tracer


class JobSpans:
    """Writes a span for every batch of jobs, where tracing is on; `times` are its begin and end in nanoseconds."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def compressed(self, batch: Sequence[CompressionJob], times: tuple[int, int]) -> None:
        """Compressions of one kind; `freed` counts the blocks that they have emptied."""
        if self._tracer.enabled:
            self._tracer.span(
                "device",
                "stall" if batch[0].is_in_place else "shadow",
                *times,
                uids=[job.uid for job in batch],
                entries=sum(job.num_entries for job in batch),
                freed=sum(len(job.block_table) - len(job.target_blocks) for job in batch),
            )

    def swapped(self, jobs: Sequence[SwapOut | SwapIn], times: tuple[int, int]) -> None:
        """Copies to or from host memory."""
        for job in jobs:
            self._tracer.span("swap", "swap out" if isinstance(job, SwapOut) else "swap in", *times, uids=[job.uid])
