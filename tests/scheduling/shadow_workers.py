"""Workers that compute nothing but believe only the messages: they check every plan against what they were told.

Instead of keys and values a cache entry holds a value that names the tokens up to it, so that whatever is read can be
compared with what its reader must find there, whoever has written it. A recorded query holds the value of its token.
The seed of a request is its uid, so that an admission tells whose it is.
"""

import sys
from collections.abc import Hashable
from dataclasses import dataclass, field

from zipage.engine_messages import (
    Admission,
    CompressionDone,
    CompressionJob,
    Job,
    JobAnswer,
    JobFailed,
    SampledToken,
    Step,
    StepResult,
    SwapDone,
    SwapIn,
    SwapOut,
)
from zipage.eviction.query_rows import observed_queries, recorded_range
from zipage.eviction.selection import entry_tiers, pinned_after
from zipage.scheduling.limits import SchedulerLimits


@dataclass
class ShadowRow:
    """A decode worker's row, rebuilt from differences alone; `entries` are what its resident entries must hold."""

    uid: int
    token_ids: list[int]
    table: list[int]
    prefix: int = 0
    position: int = 0
    entries: list[Hashable] = field(default_factory=list)
    prompt_length: int = 0
    query_buffer: int = -1
    interval_start: int = 0
    observe_from: int = sys.maxsize
    num_survivors: int = 0
    # Leading entries that are the prompt's, and queries whose attention was accumulated since the last compression.
    num_pinned: int = 0
    num_observed: int = 0
    # Of finished compressions of which no step has told: how many entries they read, and what they kept.
    finished: list[tuple[int, list[Hashable]]] = field(default_factory=list)

    def advance(self) -> Hashable:
        """Compute the next token; returns the value of its entry."""
        self.prefix = hash((self.prefix, self.token_ids[self.position]))
        # Entries of the prompt follow no others.
        self.num_pinned += self.position < self.prompt_length
        self.position += 1
        self.entries.append(self.prefix)
        return self.prefix

    def compressed_entries(self) -> list[Hashable]:
        """The entries that are left after all finished compressions."""
        return _after(self.entries, self.finished)


@dataclass
class HostCopy:
    """What a swapped request's row must find when it comes back, and what lies in its host slot.

    `finished` is as in `ShadowRow`: it may be compressed before a step has told of its coming back.
    """

    entries: list[Hashable]
    queries: dict[int, Hashable]
    num_survivors: int
    num_pinned: int
    num_observed: int
    finished: list[tuple[int, list[Hashable]]] = field(default_factory=list)

    def compressed_entries(self) -> list[Hashable]:
        """The entries that are left after all finished compressions."""
        return _after(self.entries, self.finished)


@dataclass
class ShadowWorkers:
    """Both workers. No step that has not returned may touch the blocks that an open compression job writes."""

    limits: SchedulerLimits
    rows: dict[int, ShadowRow] = field(default_factory=dict)
    gone: list[ShadowRow] = field(default_factory=list)
    jobs: dict[int, Job] = field(default_factory=dict)
    # Of steps that have not returned, the blocks that they touch and the query buffers that they write.
    touched: dict[int, set[int]] = field(default_factory=dict)
    recorded: dict[int, set[int]] = field(default_factory=dict)
    cache: dict[tuple[int, int], Hashable] = field(default_factory=dict)
    queries: dict[tuple[int, int], Hashable] = field(default_factory=dict)
    host: dict[tuple[int, int], Hashable] = field(default_factory=dict)
    copies: dict[int, HostCopy] = field(default_factory=dict)
    # Requests that are swapped in, whose admission has not been seen.
    arriving: set[int] = field(default_factory=set)
    # Jobs of compression workers that have died, which may come again.
    lost: dict[int, Job] = field(default_factory=dict)
    jobs_done: int = 0

    # ---- the decode worker ------------------------------------------------------------------------------------------

    def execute(self, step: Step, token_ids: list[int]) -> StepResult:
        """Apply a step; `token_ids` are what is sampled, in order, repeated as needed."""
        assert self.limits.overlap or not self.jobs, "a step runs beside a job"
        for row in step.released_rows:
            self.gone.append(self.rows.pop(row))
        for admission in step.admissions:
            assert admission.row not in self.rows, "a row with an owner was given out"
            self.rows[admission.row] = self._admitted(admission)
        for update in step.table_updates:
            self._replace_table(self.rows[update.row], update.block_table, update.resident_length)
        for recording in step.recording_updates:
            row = self.rows[recording.row]
            row.query_buffer, row.interval_start = recording.query_buffer, recording.interval_start
            row.observe_from = recording.observe_from
        sampled = []
        for work in step.work:
            row = self.rows[work.row]
            row.table += work.new_blocks
            assert 1 <= work.num_tokens <= len(row.token_ids) - row.position
            self._compute(row, work.num_tokens)
            if row.position == len(row.token_ids):
                row.token_ids.append(token_ids[len(sampled) % len(token_ids)])
                sampled.append(work.row)
        self._check(step)
        return StepResult(step.step_id, sampled, [SampledToken(self.rows[row].token_ids[-1]) for row in sampled])

    def returned(self, step_id: int) -> None:
        del self.touched[step_id], self.recorded[step_id]

    def _admitted(self, admission: Admission) -> ShadowRow:
        uid = admission.params.seed
        row = ShadowRow(
            uid, list(admission.token_ids), list(admission.block_table), prompt_length=admission.prompt_length
        )
        for _ in range(admission.position):
            row.advance()
        if admission.resident_length == admission.position:
            # It begins anew: a swap-in that was lost has failed.
            self.arriving.discard(uid)
            self.lost.pop(uid, None)
        else:
            row.entries = ["swapped"] * admission.resident_length
            self._bring_back(row)
        assert len(row.entries) == admission.resident_length <= len(row.table) * self.limits.block_size
        return row

    def _bring_back(self, row: ShadowRow) -> None:
        """Note what a swapped request's row must find, once both its admission and its job are known."""
        if row.uid in self.arriving and row.entries[:1] == ["swapped"]:
            copy = self.copies[row.uid]
            row.entries, row.finished = list(copy.entries), copy.finished
            row.num_survivors, row.num_pinned, row.num_observed = copy.num_survivors, copy.num_pinned, copy.num_observed
            self.arriving.discard(row.uid)

    def _replace_table(self, row: ShadowRow, table: list[int], resident_length: int) -> None:
        row.entries, row.finished, row.table = row.compressed_entries(), [], list(table)
        assert len(row.entries) == resident_length <= len(table) * self.limits.block_size

    def _compute(self, row: ShadowRow, num_tokens: int) -> None:
        limits = self.limits
        start, values = row.position - row.interval_start, []
        # Decode attention always accumulates, that of a prompt from `observe_from` on.
        is_decode = len(row.token_ids) - row.position == 1
        row.num_observed += 1 if is_decode else max(0, min(num_tokens, row.position + num_tokens - row.observe_from))
        for _ in range(num_tokens):
            values.append(row.advance())
            self._write(row, values[-1])
        if row.query_buffer < 0:
            return
        for offset, number in recorded_range(limits.scoring.observe, limits.scoring.window, start, num_tokens):
            self.queries[row.query_buffer, number] = values[offset]
        assert all(job.query_buffer != row.query_buffer for job in self.jobs.values()), (
            "a query is recorded where a job reads"
        )

    def _write(self, row: ShadowRow, value: Hashable) -> None:
        index, size = len(row.entries) - 1, self.limits.block_size
        assert index < len(row.table) * size, "a token without a slot"
        block = row.table[index // size]
        assert all(block not in job.block_table for job in self.jobs.values()), "an entry is written where a job reads"
        self.cache[block, index % size] = value

    def _check_entries(self, table: list[int], entries: list[Hashable]) -> None:
        size = self.limits.block_size
        for index, value in enumerate(entries):
            assert self.cache[table[index // size], index % size] == value, "an entry is not what it should be"

    def _check(self, step: Step) -> None:
        limits = self.limits
        assert sum(work.num_tokens for work in step.work) <= limits.max_num_batched_tokens
        assert len(self.rows) <= limits.max_num_seqs
        assert len({work.row for work in step.work}) == len(step.work)
        for work in step.work:
            self._check_entries(self.rows[work.row].table, self.rows[work.row].entries)
        touched = {block for work in step.work for block in self.rows[work.row].table}
        assert not self._written() & touched, "a step touches blocks that an open job writes"
        self.touched[step.step_id] = touched
        buffers = [row.query_buffer for row in self.rows.values() if row.query_buffer >= 0]
        assert len(set(buffers)) == len(buffers)
        assert set(buffers) <= set(range(limits.num_query_buffers))
        self.recorded[step.step_id] = {self.rows[work.row].query_buffer for work in step.work} - {-1}

    # ---- the compression worker -------------------------------------------------------------------------------------

    def accept(self, jobs: list[Job]) -> None:
        for job in jobs:
            assert self.limits.overlap or not self.touched, "a job runs beside a step"
            assert job.uid not in self.jobs
            if isinstance(job, CompressionJob):
                assert job.keep < job.num_entries <= len(job.block_table) * self.limits.block_size
                assert job.query_buffer >= 0
                assert job.keep == len(job.target_blocks) * self.limits.block_size
            self.jobs[job.uid] = job
            is_again = self.lost.pop(job.uid, None) == job
            if isinstance(job, SwapIn) and not is_again:
                self.arriving.add(job.uid)
                for row in self.rows.values():
                    self._bring_back(row)
            for blocks in self.touched.values():
                assert not blocks & set(_targets(job)), "a job writes blocks of a step in flight"
            assert all(job.query_buffer not in buffers for buffers in self.recorded.values()), (
                "a job uses a query buffer of a step in flight"
            )

    def finish(self, uid: int) -> JobAnswer:
        """Run a job: check what it reads, write what it keeps."""
        job = self.jobs.pop(uid)
        self.jobs_done += 1
        if isinstance(job, SwapOut):
            return self._swap_out(job)
        if isinstance(job, SwapIn):
            return self._swap_in(job)
        row = self._row_of(job)
        entries = row.compressed_entries()
        self._check_entries(job.block_table, entries[: job.num_entries])
        self._check_queries(job, entries)
        size = self.limits.block_size
        values = [("kept", self.jobs_done, index) for index in range(job.keep)]
        for index, value in enumerate(values):
            self.cache[job.target_blocks[index // size], index % size] = value
        row.finished.append((job.num_entries, values))
        return CompressionDone(uid, 0)

    def _note_kept(self, job: CompressionJob, row: ShadowRow | HostCopy) -> int:
        """Check what a job says of its request, and note what it leaves; returns the survivors that are pinned."""
        scoring = self.limits.scoring
        assert job.num_survivors == row.num_survivors
        assert job.num_pinned == row.num_pinned
        if scoring.observe == "all":
            assert job.num_observed == row.num_observed > 0
        tiers = entry_tiers(
            job.num_entries, scoring.sinks, scoring.recent_entries(job.keep, job.num_pinned), job.num_pinned
        )
        row.num_survivors, row.num_observed = job.keep, 0
        row.num_pinned = pinned_after(tiers, job.num_pinned, job.keep)
        return row.num_pinned

    def fail(self, uid: int) -> JobAnswer:
        """Run a job to its middle: what it was to write is garbage."""
        job = self.jobs.pop(uid)
        self.arriving.discard(uid)
        self._write_garbage(job)
        return JobFailed(uid, "no memory")

    def restart_compression(self, unfinished: set[int]) -> None:
        """Lose all jobs in the middle, but for those in place that are not in `unfinished`, which have not begun."""
        for job in self.jobs.values():
            if job.uid in unfinished or not self.is_in_place(job):
                self._write_garbage(job)
        self.lost |= self.jobs
        self.jobs = {}

    def is_in_place(self, job: Job) -> bool:
        """Whether a job writes blocks that it reads."""
        return isinstance(job, CompressionJob) and bool(set(job.block_table) & set(job.target_blocks))

    def _write_garbage(self, job: Job) -> None:
        size = self.limits.block_size
        self.cache |= {(block, offset): "garbage" for block in _targets(job) for offset in range(size)}
        if isinstance(job, SwapOut):
            self.host |= {(block, offset): "garbage" for block in job.host_blocks for offset in range(size)}

    def _written(self) -> set[int]:
        return {block for job in self.jobs.values() for block in _targets(job)}

    def _row_of(self, job: Job) -> ShadowRow | HostCopy:
        """The row that a job is about, though it may have been released already, or not admitted yet."""
        if job.uid in self.arriving:
            return self.copies[job.uid]
        return next(row for row in [*self.rows.values(), *reversed(self.gone)] if row.uid == job.uid)

    def _check_queries(self, job: CompressionJob, entries: list[Hashable]) -> None:
        scoring = self.limits.scoring
        for index, number in observed_queries(scoring.observe, scoring.window, job.num_entries - job.num_survivors):
            expected = entries[job.num_survivors + index]
            assert self.queries[job.query_buffer, number] == expected, "a query is not what it should be"

    def _swap_out(self, job: SwapOut) -> SwapDone:
        entries = self._row_of(job).compressed_entries()
        self._check_entries(job.block_table, entries)
        for block, host_block in zip(job.block_table, job.host_blocks, strict=True):
            for offset in range(self.limits.block_size):
                self.host[host_block, offset] = self.cache.get((block, offset))
        recorded = {
            number: value for (buffer, number), value in self.queries.items() if buffer == job.query_buffer >= 0
        }
        row = self._row_of(job)
        self.arriving.discard(job.uid)
        self.copies[job.uid] = HostCopy(entries, recorded, row.num_survivors, row.num_pinned, row.num_observed)
        return SwapDone(job.uid)

    def _swap_in(self, job: SwapIn) -> SwapDone:
        for block, host_block in zip(job.block_table, job.host_blocks, strict=True):
            for offset in range(self.limits.block_size):
                self.cache[block, offset] = self.host[host_block, offset]
        for number, value in self.copies[job.uid].queries.items():
            if job.query_buffer >= 0:
                self.queries[job.query_buffer, number] = value
        return SwapDone(job.uid)


def _after(entries: list[Hashable], finished: list[tuple[int, list[Hashable]]]) -> list[Hashable]:
    for num_read, kept in finished:
        entries = kept + entries[num_read:]
    return entries


def _targets(job: Job) -> list[int]:
    match job:
        case CompressionJob():
            return job.target_blocks
        case SwapIn():
            return job.block_table
        case SwapOut():
            return []
