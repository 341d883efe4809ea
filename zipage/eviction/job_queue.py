"""Which of the compressions that wait are done next, together."""

from collections import deque
from collections.abc import Iterable

from zipage.engine_messages import CompressionJob
from zipage.eviction.lengths import length_class

MAX_BATCH_SECONDS = 0.010
# A batch's requests and layers share one dimension of the kernels' grids, which ends at 65,535.
MAX_BATCH_JOBS = 256

# Slower than any GPU, so that the first batches are of one job each.
_FIRST_SECONDS_PER_ENTRY = 1e-5
# The weight of the last batch in the measured rate.
_NEWEST_SHARE = 0.2
# Requests that go on decoding give way so many times, lest they wait for ever.
_MAX_TURNS_LOST = 8


class JobQueue:
    """Compressions in the order in which they came, of which batches are taken.

    Jobs in place come first, because their requests wait (a *stall* job that copies everything to other blocks looks
    like a *shadow* one, and is treated as such); inside a kind the oldest does. A batch has jobs of one kind and one
    `length_class`. All are answered when the last is done, so a batch ends before that is expected to take longer than
    `MAX_BATCH_SECONDS`, unless its first job does by itself.
    """

    def __init__(self) -> None:
        self._stalled: deque[CompressionJob] = deque()
        self._shadow: deque[CompressionJob] = deque()
        self._turns_lost = 0
        self._seconds_per_entry = _FIRST_SECONDS_PER_ENTRY

    def __len__(self) -> int:
        return len(self._stalled) + len(self._shadow)

    def add(self, job: CompressionJob) -> None:
        """Queue a job behind those of its kind."""
        (self._stalled if job.is_in_place else self._shadow).append(job)

    def take_batch(self) -> list[CompressionJob]:
        """Take the jobs that are to be done next; none where none wait."""
        line = self._next_line()
        batch = self._choose(line)
        taken = {job.uid for job in batch}
        kept = [job for job in line if job.uid not in taken]
        line.clear()
        line.extend(kept)
        return batch

    def record(self, num_entries: int, seconds: float) -> None:
        """Learn from a finished batch how long its `num_entries` entries, of all requests, have taken."""
        self._seconds_per_entry += _NEWEST_SHARE * (seconds / num_entries - self._seconds_per_entry)

    def _next_line(self) -> deque[CompressionJob]:
        if not self._shadow:
            self._turns_lost = 0
            return self._stalled
        if self._stalled and self._turns_lost < _MAX_TURNS_LOST:
            self._turns_lost += 1
            return self._stalled
        self._turns_lost = 0
        return self._shadow

    def _choose(self, line: Iterable[CompressionJob]) -> list[CompressionJob]:
        batch: list[CompressionJob] = []
        num_entries = 0
        for job in line:
            if batch and length_class(job.num_entries) != length_class(batch[0].num_entries):
                continue
            num_entries += job.num_entries
            is_long = num_entries * self._seconds_per_entry > MAX_BATCH_SECONDS
            if batch and (is_long or len(batch) == MAX_BATCH_JOBS):
                break
            batch.append(job)
        return batch
