"""The part of a step that is not steady decoding: prompts, and rows whose tokens the host chooses."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zipage.engine_messages import RowWork
from zipage.execution.batch import Recording, recorded_rows, split_work
from zipage.execution.device_rows import DeviceRows
from zipage.execution.kernel_attention import Chunks, KernelBatch
from zipage.execution.upload import upload


@dataclass(frozen=True)
class EagerBatch:
    """T tokens that the host knows.

    Attributes:
        input_ids: [T] int64.
        attention: what attention has to know of them.
        sampled_rows: rows whose last known token is in the batch; the next one is sampled.
        sampled_tokens: [len(sampled_rows)] int64, the index of that last token.
    """

    input_ids: Tensor
    attention: KernelBatch
    sampled_rows: list[int]
    sampled_tokens: Tensor


@dataclass
class _Lists:
    """The batch as Python lists while it is put together."""

    input_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    query_rows: list[int] = field(default_factory=list)
    sampled_tokens: list[int] = field(default_factory=list)
    decodes: list[int] = field(default_factory=list)
    decode_lengths: list[int] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)
    chunk_starts: list[int] = field(default_factory=lambda: [0])
    chunk_lengths: list[int] = field(default_factory=list)
    observe_last: list[int] = field(default_factory=list)


def advance_and_build_eagerly(
    table: DeviceRows, work: Sequence[RowWork], block_size: int, recording: Recording
) -> EagerBatch:
    """Build the batch of a step's work on rows whose tokens are known, and count these as computed."""
    lists, sampled_rows = _Lists(), []
    decodes, chunks = split_work(table, work)
    for item in [*decodes, *chunks]:
        is_decode = table.rows[item.row].num_uncomputed == 1
        _add(lists, table, item, block_size, recording)
        _add_attention(lists, table, item, is_decode)
        if table.rows[item.row].num_uncomputed == 0:
            sampled_rows.append(item.row)
            lists.sampled_tokens.append(len(lists.input_ids) - 1)
    uploaded = dict(zip(vars(lists), upload(list(vars(lists).values()), table.block_tables.device), strict=True))
    return EagerBatch(uploaded["input_ids"], _attention(table, uploaded), sampled_rows, uploaded["sampled_tokens"])


def _add(lists: _Lists, table: DeviceRows, item: RowWork, block_size: int, recording: Recording) -> None:
    row, count, start = table.rows[item.row], item.num_tokens, len(lists.input_ids)
    lists.input_ids += row.token_ids[row.position : row.position + count]
    lists.positions += range(row.position, row.position + count)
    entries = range(row.resident_length, row.resident_length + count)
    lists.slots += [table.slot(item.row, entry, block_size) for entry in entries]
    lists.query_rows += [-1] * count
    for offset, query_row in recorded_rows(row, count, recording):
        lists.query_rows[start + offset] = query_row
    row.advance(count)


def _add_attention(lists: _Lists, table: DeviceRows, item: RowWork, is_decode: bool) -> None:
    """Note how a row that has advanced attends."""
    row = table.rows[item.row]
    if is_decode:
        lists.decodes.append(item.row)
        lists.decode_lengths.append(row.resident_length)
        return
    lists.chunks.append(item.row)
    lists.chunk_starts.append(lists.chunk_starts[-1] + item.num_tokens)
    lists.chunk_lengths.append(row.resident_length)
    lists.observe_last.append(row.num_observed(item.num_tokens))


def _attention(table: DeviceRows, uploaded: dict[str, Tensor]) -> KernelBatch:
    def tables(rows: Tensor) -> torch.Tensor:
        return table.block_tables.index_select(0, rows)

    chunks = None
    if len(uploaded["chunks"]):
        chunks = Chunks(
            starts=uploaded["chunk_starts"],
            tables=tables(uploaded["chunks"]),
            lengths=uploaded["chunk_lengths"],
            observe_last=uploaded["observe_last"],
        )
    return KernelBatch(
        positions=uploaded["positions"],
        slots=uploaded["slots"],
        decode_tables=tables(uploaded["decodes"]),
        decode_lengths=uploaded["decode_lengths"],
        chunks=chunks,
        query_rows=uploaded["query_rows"],
    )
