"""What the decode worker remembers of each running request, kept up to date by the differences in each step."""

import sys
from dataclasses import dataclass, field

import torch

from zipage.config import EngineConfig
from zipage.engine_messages import Admission, PoolGeometry, Step, TableUpdate
from zipage.execution.sampling import SamplingState


@dataclass
class Row:
    """One running request.

    Attributes:
        token_ids: all known tokens.
        position: tokens computed, which is the next token's position.
        resident_length: KV entries of each layer and head.
        num_blocks: blocks in the row of the block tables.
        query_buffer: where queries are recorded, -1 for nowhere.
        interval_start: position of the first query of the observed interval.
        observe_from: position from which on a prompt's attention is accumulated.
    """

    token_ids: list[int]
    sampling: SamplingState
    position: int
    resident_length: int
    num_blocks: int = 0
    query_buffer: int = -1
    interval_start: int = 0
    observe_from: int = sys.maxsize

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.position

    def advance(self, count: int) -> None:
        """Count the next tokens as computed, with an entry each."""
        self.position += count
        self.resident_length += count

    def num_observed(self, count: int) -> int:
        """How many of the last `count` queries of a prompt are observed, where attention is accumulated."""
        return max(0, min(count, self.position - self.observe_from))


@dataclass
class RowTable:
    """All rows, and their block tables as one tensor on the device.

    Attributes:
        block_tables: [max_num_seqs, most blocks of a sequence] int64, padded with a block of the row itself: what is
            read, and in vain written, past a row's end must not belong to another request.
    """

    block_tables: torch.Tensor
    vocab_size: int
    rows: dict[int, Row] = field(default_factory=dict)

    @classmethod
    def allocate(
        cls, config: EngineConfig, geometry: PoolGeometry, max_model_len: int, vocab_size: int, device: torch.device
    ) -> "RowTable":
        width = min(geometry.num_blocks, -(-max_model_len // geometry.block_size))
        return cls(torch.zeros((config.max_num_seqs, width), dtype=torch.int64, device=device), vocab_size)

    def apply(self, step: Step) -> None:
        """Apply a step's differences, in the order in which the message lists them."""
        for number in step.released_rows:
            del self.rows[number]
        for admission in step.admissions:
            self._admit(admission)
        for update in step.table_updates:
            self._replace_table(update)
        for recording in step.recording_updates:
            row = self.rows[recording.row]
            row.query_buffer, row.interval_start = recording.query_buffer, recording.interval_start
            row.observe_from = recording.observe_from
        for work in step.work:
            self._append_blocks(work.row, work.new_blocks)

    def _admit(self, admission: Admission) -> None:
        sampling = SamplingState(
            admission.params,
            admission.token_ids[: admission.prompt_length],
            admission.token_ids[admission.prompt_length :],
            admission.eos_token_ids,
            self.vocab_size,
            self.block_tables.device,
        )
        self.rows[admission.row] = Row(
            list(admission.token_ids), sampling, admission.position, admission.resident_length
        )
        self._append_blocks(admission.row, admission.block_table)

    def _replace_table(self, update: TableUpdate) -> None:
        row = self.rows[update.row]
        row.num_blocks = 0
        row.resident_length = update.resident_length
        self._append_blocks(update.row, update.block_table)

    def _append_blocks(self, number: int, blocks: list[int]) -> None:
        if blocks:
            row = self.rows[number]
            if not row.num_blocks:
                self.block_tables[number] = blocks[0]
            end = row.num_blocks + len(blocks)
            self.block_tables[number, row.num_blocks : end] = torch.tensor(blocks)
            row.num_blocks = end
