"""What the decode worker remembers of each running request where sampled tokens stay on the device.

The host knows everything but the tokens of steps that have not returned. It stages changes of block tables and sampling
options, and sends those of a step together.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from zipage.config import EngineConfig
from zipage.engine_messages import Admission, PoolGeometry
from zipage.execution.rows import Row, RowTable
from zipage.execution.upload import upload, upload_floats

# In place of a token that was sampled on the device and is there.
ON_DEVICE = -1


@dataclass(frozen=True)
class SamplingOptions:
    """Options of every row, as the sampling kernels take them: [rows] each, float64 but for the float32 temperature."""

    temperatures: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seeds: Tensor


@dataclass
class DeviceRows(RowTable):
    """All rows, one of them for padding, and what the device holds of them.

    Attributes:
        padding: the row of no request, the last one.
        last_tokens: [rows] int64, the token that was sampled last.
        options: of each row's sampling.
        tables: each row's blocks.
    """

    padding: int = field(kw_only=True)
    last_tokens: Tensor = field(kw_only=True)
    options: SamplingOptions = field(kw_only=True)
    tables: dict[int, list[int]] = field(default_factory=dict, kw_only=True)
    _table_writes: dict[int, int] = field(default_factory=dict, kw_only=True)
    _admitted: list[int] = field(default_factory=list, kw_only=True)

    @classmethod
    def allocate(
        cls, config: EngineConfig, geometry: PoolGeometry, max_model_len: int, vocab_size: int, device: torch.device
    ) -> "DeviceRows":
        count = config.max_num_seqs + 1
        width = min(geometry.num_blocks, -(-max_model_len // geometry.block_size))

        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros((count, *shape), dtype=dtype, device=device)

        options = SamplingOptions(
            temperatures=zeros(torch.float32),
            top_k=zeros(torch.int64) + 1,
            top_p=zeros(torch.float64) + 1,
            min_p=zeros(torch.float64),
            seeds=zeros(torch.int64),
        )
        return cls(
            zeros(torch.int64, width),
            vocab_size,
            padding=config.max_num_seqs,
            last_tokens=zeros(torch.int64),
            options=options,
        )

    def send_changes(self) -> None:
        """Make the device's block tables and sampling options those of the differences applied so far."""
        device = self.block_tables.device
        if self._table_writes:
            places, blocks = upload([list(self._table_writes), list(self._table_writes.values())], device)
            self.block_tables.view(-1).index_copy_(0, places, blocks)
            self._table_writes.clear()
        if self._admitted:
            self._send_options()
            self._admitted.clear()

    def is_steady(self, row: Row) -> bool:
        """Whether a row's next token is on the device."""
        return row.token_ids[row.position] == ON_DEVICE

    def slot(self, number: int, entry: int, block_size: int) -> int:
        """The slot of the pool where an entry of a row goes."""
        return self.tables[number][entry // block_size] * block_size + entry % block_size

    def _send_options(self) -> None:
        # A request may be admitted and gone within the steps of one message.
        numbers = [number for number in dict.fromkeys(self._admitted) if number in self.rows]
        states = [self.rows[number].sampling for number in numbers]
        device, options = self.block_tables.device, self.options
        places, top_k, seeds = upload([numbers, [s.top_k for s in states], [s.seed for s in states]], device)
        temperatures, top_p, min_p = upload_floats(
            [
                [0.0 if s.greedy else s.temperature for s in states],
                [s.top_p for s in states],
                [s.min_p for s in states],
            ],
            device,
        )
        options.top_k.index_copy_(0, places, top_k)
        options.seeds.index_copy_(0, places, seeds)
        options.temperatures.index_copy_(0, places, temperatures.float())
        options.top_p.index_copy_(0, places, top_p)
        options.min_p.index_copy_(0, places, min_p)

    def _admit(self, admission: Admission) -> None:
        super()._admit(admission)
        self._admitted.append(admission.row)

    def _append_blocks(self, number: int, blocks: list[int]) -> None:
        row = self.rows[number]
        if not row.num_blocks:
            self.tables[number] = []
        first = number * self.block_tables.shape[1] + row.num_blocks
        self._table_writes.update(zip(range(first, first + len(blocks)), blocks, strict=True))
        self.tables[number] += blocks
        row.num_blocks += len(blocks)
