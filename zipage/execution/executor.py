"""One step of the decode worker on a CPU: differences in, forward pass, sampled tokens out."""

import torch

from zipage.config import EngineConfig
from zipage.engine_messages import Step, StepResult
from zipage.execution.attention import PagedAttention
from zipage.execution.batch import Recording, advance_and_build
from zipage.execution.pool import KVPool
from zipage.execution.rows import RowTable
from zipage.execution.sampling import sample
from zipage.models.decoder import Decoder


class Executor:
    """Owns the decoder's per-request state; its pool's block tables are the scheduler's."""

    def __init__(self, decoder: Decoder, pool: KVPool, config: EngineConfig, max_model_len: int) -> None:
        self.decoder = decoder
        self.pool = pool
        vocab_size = decoder.config.vocab_size
        self._table = RowTable.allocate(config, pool.geometry, max_model_len, vocab_size, pool.device)
        self._recording = Recording(config.scoring.observe, config.scoring.window, pool.geometry.accumulate)

    @torch.inference_mode()
    def execute(self, step: Step) -> StepResult:
        """Run a step; every row that reached its last known token gets one sampled token."""
        table = self._table
        table.apply(step)
        batch = advance_and_build(table, step.work, self.pool.geometry.block_size, self._recording)
        hidden = self.decoder(batch.input_ids, batch.positions, PagedAttention(self.pool, batch))
        if not batch.sampled_rows:
            return StepResult(step.step_id, [], [])
        rows = [table.rows[number] for number in batch.sampled_rows]
        tokens = sample(self.decoder.logits(hidden[batch.sampled_tokens]), [row.sampling for row in rows])
        for row, token in zip(rows, tokens, strict=True):
            row.token_ids.append(token.token_id)
            row.sampling.append(token.token_id)
        return StepResult(step.step_id, batch.sampled_rows, tokens)
