"""The flat batch of one step: which tokens are computed, where their KV goes, what each of them attends to."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from zipage.config import Observe
from zipage.engine_messages import RowWork
from zipage.eviction.query_rows import recorded_range
from zipage.execution.rows import Row, RowTable


@dataclass(frozen=True)
class PrefillChunk:
    """Consecutive tokens of one row, `num_tokens` of them from `start` on in the flat batch.

    Attributes:
        block_table: [blocks] int64.
        resident_length: entries once the chunk is written; its tokens own the last of them.
        observe_last: how many of its last queries are observed, where attention is accumulated.
    """

    start: int
    num_tokens: int
    block_table: torch.Tensor
    resident_length: int
    observe_last: int


@dataclass(frozen=True)
class Batch:
    """T tokens: first one of each of the B decoding rows, then the prefill chunks.

    Attributes:
        input_ids, positions: [T] int64.
        slot_mapping: [T] int64, `block * block_size + offset` of each token's KV entry.
        num_decodes: B.
        decode_tables: [B, blocks] int64, padded with a block of the row itself.
        decode_lengths: [B] int64, resident lengths with the new entry.
        prefills: the chunks.
        query_tokens: [Q] int64, the tokens whose queries are recorded.
        query_rows: [Q] int64, `query_buffer * window + row in the buffer` of each.
        sampled_rows: rows whose last known token is in the batch; the next one is sampled.
        sampled_tokens: [len(sampled_rows)] int64, the index of that last token.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    num_decodes: int
    decode_tables: torch.Tensor
    decode_lengths: torch.Tensor
    prefills: list[PrefillChunk]
    query_tokens: torch.Tensor
    query_rows: torch.Tensor
    sampled_rows: list[int]
    sampled_tokens: torch.Tensor


@dataclass(frozen=True)
class Recording:
    """What is recorded of a row's queries: the scoring option, the window, and whether attention is accumulated."""

    observe: Observe
    window: int
    accumulate: bool


@dataclass
class _Lists:
    """The batch as Python lists while it is put together."""

    input_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    entry_rows: list[int] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)
    query_tokens: list[int] = field(default_factory=list)
    query_rows: list[int] = field(default_factory=list)
    sampled_rows: list[int] = field(default_factory=list)
    sampled_tokens: list[int] = field(default_factory=list)

    def add(self, number: int, row: Row, count: int, recording: Recording) -> None:
        """Append the next `count` known tokens of a row and count them as computed."""
        start = len(self.input_ids)
        self.input_ids += row.token_ids[row.position : row.position + count]
        self.positions += range(row.position, row.position + count)
        self.entry_rows += [number] * count
        self.entries += range(row.resident_length, row.resident_length + count)
        for offset, query_row in recorded_rows(row, count, recording):
            self.query_tokens.append(start + offset)
            self.query_rows.append(query_row)
        row.advance(count)
        if row.num_uncomputed == 0:
            self.sampled_rows.append(number)
            self.sampled_tokens.append(start + count - 1)


def advance_and_build(table: RowTable, work: Sequence[RowWork], block_size: int, recording: Recording) -> Batch:
    """Build the batch of a step's work and count its tokens as computed."""
    decodes, chunks = split_work(table, work)
    lists, prefills = _Lists(), []
    for item in decodes:
        lists.add(item.row, table.rows[item.row], 1, recording)
    for item in chunks:
        start = len(lists.input_ids)
        lists.add(item.row, table.rows[item.row], item.num_tokens, recording)
        prefills.append(_chunk(table, start, item))

    def tensor(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=table.block_tables.device)

    entries, decode_rows = tensor(lists.entries), [item.row for item in decodes]
    blocks = table.block_tables[tensor(lists.entry_rows), entries // block_size]
    widest = max((table.rows[row].num_blocks for row in decode_rows), default=0)
    return Batch(
        input_ids=tensor(lists.input_ids),
        positions=tensor(lists.positions),
        slot_mapping=blocks * block_size + entries % block_size,
        num_decodes=len(decodes),
        decode_tables=table.block_tables[tensor(decode_rows), :widest],
        decode_lengths=tensor([table.rows[row].resident_length for row in decode_rows]),
        prefills=prefills,
        query_tokens=tensor(lists.query_tokens),
        query_rows=tensor(lists.query_rows),
        sampled_rows=lists.sampled_rows,
        sampled_tokens=tensor(lists.sampled_tokens),
    )


def split_work(table: RowTable, work: Sequence[RowWork]) -> tuple[list[RowWork], list[RowWork]]:
    """Work on rows with one known token left, and on those with more, which is done as a chunk of a prompt."""
    decodes = [item for item in work if table.rows[item.row].num_uncomputed == 1]
    chunks = [item for item in work if table.rows[item.row].num_uncomputed > 1]
    return decodes, chunks


def recorded_rows(row: Row, count: int, recording: Recording) -> list[tuple[int, int]]:
    """Which of the next `count` queries of a row are recorded where.

    Returns:
        Pairs of (offset, `query_buffer * window + row in the buffer`).
    """
    if row.query_buffer < 0 or recording.accumulate:
        return []
    recorded = recorded_range(recording.observe, recording.window, row.position - row.interval_start, count)
    return [(offset, row.query_buffer * recording.window + query_row) for offset, query_row in recorded]


def _chunk(table: RowTable, start: int, item: RowWork) -> PrefillChunk:
    """The chunk of a row that has advanced over it."""
    row = table.rows[item.row]
    return PrefillChunk(
        start=start,
        num_tokens=item.num_tokens,
        block_table=table.block_tables[item.row, : row.num_blocks],
        resident_length=row.resident_length,
        observe_last=row.num_observed(item.num_tokens),
    )
