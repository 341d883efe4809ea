"""Workers that compute nothing but believe only the messages: they check every plan against what they were told."""

from dataclasses import dataclass, field

from zipage.messages import CompressionDone, CompressionJob, SampledToken, Step, StepResult
from zipage.scheduling.limits import SchedulerLimits


@dataclass
class ShadowRow:
    """A decode worker's row, rebuilt from differences alone."""

    known: int
    position: int = 0
    resident: int = 0
    table: list[int] = field(default_factory=list)
    query_slot: int = -1


@dataclass
class ShadowWorkers:
    """Both workers. No step that has not returned may touch the blocks of an open compression job."""

    limits: SchedulerLimits
    rows: dict[int, ShadowRow] = field(default_factory=dict)
    jobs: dict[int, CompressionJob] = field(default_factory=dict)
    touched: dict[int, set[int]] = field(default_factory=dict)

    def execute(self, step: Step, token_ids: list[int]) -> StepResult:
        """Apply a step; `token_ids` are what is sampled, in order, repeated as needed."""
        for row in step.released_rows:
            del self.rows[row]
        for admission in step.admissions:
            assert admission.row not in self.rows, "a row with an owner was given out"
            self.rows[admission.row] = ShadowRow(known=len(admission.token_ids), query_slot=admission.query_slot)
        for update in step.table_updates:
            row = self.rows[update.row]
            row.table, row.resident = list(update.block_table), update.resident_length
        sampled = []
        for work in step.work:
            row = self.rows[work.row]
            row.table += work.new_blocks
            assert 1 <= work.num_tokens <= row.known - row.position
            row.position += work.num_tokens
            row.resident += work.num_tokens
            assert row.resident <= len(row.table) * self.limits.block_size, "a token without a slot"
            if row.position == row.known:
                row.known += 1
                sampled.append(work.row)
        self._check(step)
        tokens = [SampledToken(token_ids[i % len(token_ids)]) for i in range(len(sampled))]
        return StepResult(step.step_id, sampled, tokens)

    def accept(self, jobs: list[CompressionJob]) -> None:
        for job in jobs:
            assert job.uid not in self.jobs
            assert job.num_entries == len(job.block_table) * self.limits.block_size
            assert set(job.target_blocks) <= set(job.block_table)
            assert job.query_slot >= 0
            for blocks in self.touched.values():
                assert not blocks & set(job.block_table), "a job was ordered on blocks of a step in flight"
            assert job.keep == len(job.target_blocks) * self.limits.block_size < job.num_entries
            self.jobs[job.uid] = job

    def returned(self, step_id: int) -> None:
        del self.touched[step_id]

    def finish(self, uid: int) -> CompressionDone:
        self.jobs.pop(uid)
        return CompressionDone(uid, 0, 0.0)

    def _check(self, step: Step) -> None:
        limits = self.limits
        assert sum(work.num_tokens for work in step.work) <= limits.max_num_batched_tokens
        assert len(self.rows) <= limits.max_num_seqs
        assert len({work.row for work in step.work}) == len(step.work)
        touched = [block for work in step.work for block in self.rows[work.row].table]
        assert len(set(touched)) == len(touched), "two requests of one step share a block"
        in_jobs = {block for job in self.jobs.values() for block in job.block_table}
        assert not in_jobs & set(touched), "a step touches blocks of an open job"
        self.touched[step.step_id] = set(touched)
        slots = [row.query_slot for row in self.rows.values() if row.query_slot >= 0]
        assert len(set(slots)) == len(slots)
