"""What the decode worker remembers of its rows."""

import torch
from small_pools import small_geometry

from zipage.config import EngineConfig
from zipage.engine_messages import Admission, RowWork, Step, TableUpdate
from zipage.execution.batch import Recording, advance_and_build
from zipage.execution.rows import RowTable
from zipage.sampling_params import SamplingParams

GEOMETRY = small_geometry(num_blocks=64, block_size=8)
PARAMS = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=0)


def admission(row: int, num_tokens: int) -> Admission:
    return Admission(row, [3] * num_tokens, num_tokens, PARAMS, (2,), [], 0, 0)


def test_tables_are_padded_with_blocks_of_the_row_itself() -> None:
    """Accumulated attention adds zeros to padding, which must not meet what a compression job writes elsewhere."""
    config = EngineConfig(model="m", block_size=8, max_num_seqs=4)
    table = RowTable.allocate(config, GEOMETRY, 200, 64, torch.device("cpu"))
    first = [RowWork(0, 40, [10, 11, 12, 13, 14]), RowWork(1, 9, [20, 21])]
    table.apply(Step(0, [], [admission(0, 41), admission(1, 10)], [], [], first))
    advance_and_build(table, first, 8, Recording("last", 4, False))
    # Row 1 had a longer table before, which a compression has shortened.
    second = [RowWork(0, 1, [15]), RowWork(1, 1, [])]
    table.apply(Step(1, [], [], [TableUpdate(1, [30, 31], 9)], [], second))
    batch = advance_and_build(table, second, 8, Recording("last", 4, False))
    assert batch.decode_tables.tolist() == [[10, 11, 12, 13, 14, 15], [30, 31, 30, 30, 30, 30]]
