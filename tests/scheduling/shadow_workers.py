"""Workers that compute nothing but believe only the messages: they check every plan against what they were told.

Instead of keys and values a cache entry holds a value that names the tokens up to it, so that whatever is read can be
compared with what its reader must find there, whoever has written it.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field

from zipage.messages import CompressionDone, CompressionJob, SampledToken, Step, StepResult
from zipage.scheduling.limits import SchedulerLimits


@dataclass
class ShadowRow:
    """A decode worker's row, rebuilt from differences alone; `entries` are what its resident entries must hold."""

    token_ids: list[int]
    query_slot: int
    prefix: int = 0
    position: int = 0
    entries: list[Hashable] = field(default_factory=list)
    table: list[int] = field(default_factory=list)

    def advance(self) -> Hashable:
        """Compute the next token; returns the value of its entry."""
        self.prefix = hash((self.prefix, self.token_ids[self.position]))
        self.position += 1
        self.entries.append(self.prefix)
        return self.prefix


@dataclass
class ShadowWorkers:
    """Both workers. No step that has not returned may touch the blocks that an open compression job writes."""

    limits: SchedulerLimits
    rows: dict[int, ShadowRow] = field(default_factory=dict)
    jobs: dict[int, CompressionJob] = field(default_factory=dict)
    touched: dict[int, set[int]] = field(default_factory=dict)
    cache: dict[tuple[int, int], Hashable] = field(default_factory=dict)
    jobs_done: int = 0

    def execute(self, step: Step, token_ids: list[int]) -> StepResult:
        """Apply a step; `token_ids` are what is sampled, in order, repeated as needed."""
        for row in step.released_rows:
            del self.rows[row]
        for admission in step.admissions:
            assert admission.row not in self.rows, "a row with an owner was given out"
            self.rows[admission.row] = self._admitted(admission)
        for update in step.table_updates:
            self._replace_table(self.rows[update.row], update.block_table, update.resident_length)
        sampled = []
        for work in step.work:
            row = self.rows[work.row]
            row.table += work.new_blocks
            assert 1 <= work.num_tokens <= len(row.token_ids) - row.position
            for _ in range(work.num_tokens):
                self._write(row, row.advance())
            if row.position == len(row.token_ids):
                row.token_ids.append(token_ids[len(sampled) % len(token_ids)])
                sampled.append(work.row)
        self._check(step)
        return StepResult(step.step_id, sampled, [SampledToken(self.rows[row].token_ids[-1]) for row in sampled])

    def returned(self, step_id: int) -> None:
        del self.touched[step_id]

    def accept(self, jobs: list[CompressionJob]) -> None:
        for job in jobs:
            assert job.uid not in self.jobs
            assert job.num_entries == len(job.block_table) * self.limits.block_size
            assert job.query_slot >= 0
            assert job.keep == len(job.target_blocks) * self.limits.block_size < job.num_entries
            for blocks in self.touched.values():
                assert not blocks & set(job.target_blocks), "a job writes blocks of a step in flight"
            self.jobs[job.uid] = job

    def finish(self, uid: int) -> CompressionDone:
        """Run a job: check what it reads, write what it keeps."""
        job = self.jobs.pop(uid)
        self.jobs_done += 1
        (row,) = (row for row in self.rows.values() if row.query_slot == job.query_slot)
        assert job.block_table == row.table
        self._check_row(row)
        row.entries = [("kept", self.jobs_done, index) for index in range(job.keep)]
        size = self.limits.block_size
        for index, value in enumerate(row.entries):
            self.cache[job.target_blocks[index // size], index % size] = value
        return CompressionDone(uid, 0)

    def _admitted(self, admission) -> ShadowRow:
        row = ShadowRow(list(admission.token_ids), admission.query_slot, table=list(admission.block_table))
        for _ in range(admission.position):
            row.advance()
        assert len(row.entries) == len(row.table) * self.limits.block_size
        return row

    def _replace_table(self, row: ShadowRow, table: list[int], resident_length: int) -> None:
        assert len(row.entries) == resident_length
        row.table = list(table)

    def _write(self, row: ShadowRow, value: Hashable) -> None:
        index = len(row.entries) - 1
        size = self.limits.block_size
        assert index < len(row.table) * size, "a token without a slot"
        self.cache[row.table[index // size], index % size] = value

    def _check_row(self, row: ShadowRow) -> None:
        size = self.limits.block_size
        for index, value in enumerate(row.entries):
            assert self.cache[row.table[index // size], index % size] == value, "an entry is not what it should be"

    def _check(self, step: Step) -> None:
        limits = self.limits
        assert sum(work.num_tokens for work in step.work) <= limits.max_num_batched_tokens
        assert len(self.rows) <= limits.max_num_seqs
        assert len({work.row for work in step.work}) == len(step.work)
        for work in step.work:
            self._check_row(self.rows[work.row])
        touched = {block for work in step.work for block in self.rows[work.row].table}
        written = {block for job in self.jobs.values() for block in job.target_blocks}
        assert not written & touched, "a step touches blocks that an open job writes"
        self.touched[step.step_id] = touched
        slots = [row.query_slot for row in self.rows.values() if row.query_slot >= 0]
        assert len(set(slots)) == len(slots)
