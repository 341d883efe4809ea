"""Steps on a GPU: launched without waiting for the device, sampled tokens fed back there."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zipage import tracing
from zipage.config import EngineConfig
from zipage.engine_messages import RowWork, SampledToken, Step, StepResult
from zipage.execution.batch import Recording, recorded_rows
from zipage.execution.decode_graphs import DecodeGraphs
from zipage.execution.device_clock import mark
from zipage.execution.device_rows import ON_DEVICE, DeviceRows
from zipage.execution.eager_batch import EagerBatch, advance_and_build_eagerly
from zipage.execution.kernel_attention import KernelAttention, KernelBatch
from zipage.execution.pool import KVPool
from zipage.execution.sampling import sample
from zipage.execution.sampling_state import SamplingState
from zipage.execution.upload import download, upload
from zipage.kernels.decode_attention import decode_workspace
from zipage.kernels.sampling import greedy_tokens, sample_tokens
from zipage.models.decoder import Decoder


@dataclass(frozen=True)
class LaunchedStep:
    """A step that the device has been given.

    Attributes:
        step_id: of the step.
        rows: those that get a token, first of `on_their_way`, then of `chosen`.
        on_their_way: tokens in pinned host memory, valid once `done` has happened.
        chosen: tokens that the host has already.
        done: after everything else of the step; None where the device computes at once.
        begun, decoded: before and after its graph, where steps are timed.
        asked: when the host had asked for its graph, in nanoseconds of CLOCK_MONOTONIC.
        num_steady, num_others: rows that decoded in the graph, and those computed after it.
    """

    step_id: int
    rows: list[int]
    on_their_way: list[Tensor]
    chosen: list[SampledToken]
    done: torch.cuda.Event | None
    begun: torch.cuda.Event | None = None
    decoded: torch.cuda.Event | None = None
    asked: int = 0
    num_steady: int = 0
    num_others: int = 0

    def wait(self) -> StepResult:
        """The result, once the device has computed it; other threads run meanwhile."""
        if self.done is not None:
            self.done.synchronize()
        arrived = [SampledToken(token_id) for tokens in self.on_their_way for token_id in tokens.tolist()]
        return StepResult(self.step_id, self.rows, arrived + self.chosen)


class DeviceExecutor:
    """Owns the decoder's per-request state; its pool's block tables are the scheduler's.

    A row whose last token was sampled on the device decodes in a graph, from which the host needs nothing back.
    Prompts, and rows with sampling options that the kernels do not know, are computed after it, one operation at a
    time. That order serves prefix caching too: rows that read blocks which the step itself fills are in this part.
    """

    def __init__(self, decoder: Decoder, pool: KVPool, config: EngineConfig, max_model_len: int) -> None:
        self.decoder = decoder
        self.pool = pool
        self._is_timed = config.trace is not None
        geometry = pool.geometry
        vocab_size = decoder.config.vocab_size
        self.table = DeviceRows.allocate(config, geometry, max_model_len, vocab_size, pool.device)
        self._recording = Recording(config.scoring.observe, config.scoring.window, geometry.accumulate)
        self._workspace = decode_workspace(
            geometry.num_query_heads, geometry.num_kv_heads, geometry.head_dim, pool.device
        )
        # Row, position, slot, resident length, where the query is recorded, index of the sampled token.
        padding = (self.table.padding, 0, -1, 0, -1, 0)
        self.graphs = DecodeGraphs(self._decode, padding, config.max_num_seqs, pool.device)

    def execute(self, step: Step) -> StepResult:
        """Run a step and wait for it; every row that reached its last known token gets one sampled token."""
        return self.launch(step).wait()

    @torch.inference_mode()
    def launch(self, step: Step) -> LaunchedStep:
        """Give a step to the device, which need not have finished the one before."""
        table = self.table
        table.apply(step)
        table.send_changes()
        steady = [item.row for item in step.work if table.is_steady(table.rows[item.row])]
        others = [item for item in step.work if not table.is_steady(table.rows[item.row])]
        on_their_way: list[Tensor] = []
        chosen: list[SampledToken] = []
        rows = steady
        begun = self._mark() if self._is_timed else None
        if steady:
            on_their_way.append(download(self._launch_decodes(steady)))
        asked, decoded = tracing.now(), self._mark() if self._is_timed else None
        if others:
            sampled_rows, tokens, chosen = self._launch_others(others)
            rows = steady + sampled_rows
            on_their_way.append(download(tokens))
        return LaunchedStep(
            step.step_id,
            rows,
            on_their_way,
            chosen,
            done=self._mark(),
            begun=begun,
            decoded=decoded,
            asked=asked,
            num_steady=len(steady),
            num_others=len(others),
        )

    def _mark(self) -> torch.cuda.Event | None:
        """An event at this point of the stream; None where the device computes at once."""
        return mark(self._is_timed) if self.pool.device.type == "cuda" else None

    def _launch_decodes(self, numbers: Sequence[int]) -> Tensor:
        """Decode one token of each row: [B] int64, on the device."""
        inputs = [self._advance(number) for number in numbers]
        is_greedy = all(self.table.rows[number].sampling.greedy for number in numbers)
        return self.graphs.run(list(zip(*inputs, strict=True)), is_greedy)

    def _advance(self, number: int) -> tuple[int, ...]:
        """The inputs of a row's next token, which counts as computed and followed by another one."""
        row, table = self.table.rows[number], self.table
        slot = table.slot(number, row.resident_length, self.pool.geometry.block_size)
        recorded = recorded_rows(row, 1, self._recording)
        query_row = recorded[0][1] if recorded else -1
        inputs = number, row.position, slot, row.resident_length + 1, query_row, row.sampling.num_output_tokens
        row.advance(1)
        self._count_sampled(number)
        return inputs

    def _count_sampled(self, number: int) -> None:
        """Note that a token of a row was sampled on the device."""
        row = self.table.rows[number]
        row.token_ids.append(ON_DEVICE)
        row.sampling.num_output_tokens += 1

    def _decode(self, inputs: Tensor, is_greedy: bool) -> Tensor:
        """The `DecodeFunction`: inputs [6, B], as they are listed above."""
        table = self.table
        rows, positions, slots, lengths, query_rows, token_indices = inputs.unbind()
        batch = KernelBatch(
            positions=positions,
            slots=slots,
            decode_tables=table.block_tables.index_select(0, rows),
            decode_lengths=lengths,
            chunks=None,
            query_rows=query_rows,
        )
        hidden = self.decoder.run_layers(table.last_tokens.index_select(0, rows), self._attention(batch))
        return self._sample(self.decoder.output_logits(hidden), rows, token_indices, is_greedy)

    def _launch_others(self, work: Sequence[RowWork]) -> tuple[list[int], Tensor, list[SampledToken]]:
        """Compute known tokens: the rows sampled, tokens of the first ones on the device, and those of the others."""
        batch = advance_and_build_eagerly(self.table, work, self.pool.geometry.block_size, self._recording)
        hidden = self.decoder.run_layers(batch.input_ids, self._attention(batch.attention))
        rows = self.table.rows
        plain = [i for i, row in enumerate(batch.sampled_rows) if not _host_samples(rows[row].sampling)]
        special = [i for i, row in enumerate(batch.sampled_rows) if _host_samples(rows[row].sampling)]
        tokens = self._sample_plain(hidden, batch, plain)
        chosen = self._sample_special(hidden, batch, special)
        return [batch.sampled_rows[i] for i in [*plain, *special]], tokens, chosen

    def _sample_plain(self, hidden: Tensor, batch: EagerBatch, which: list[int]) -> Tensor:
        """Tokens of some of the batch's sampled rows, [len(which)] int64, that stay on the device."""
        numbers = [batch.sampled_rows[i] for i in which]
        states = [self.table.rows[number].sampling for number in numbers]
        if not numbers:
            return hidden.new_empty(0, dtype=torch.int64)
        places, rows, token_indices = upload(
            [which, numbers, [state.num_output_tokens for state in states]], self.pool.device
        )
        logits = self.decoder.output_logits(hidden[batch.sampled_tokens[places]])
        for number in numbers:
            self._count_sampled(number)
        return self._sample(logits, rows, token_indices, all(state.greedy for state in states))

    def _sample_special(self, hidden: Tensor, batch: EagerBatch, which: list[int]) -> list[SampledToken]:
        """Tokens of some of the batch's sampled rows, chosen by the host, which waits for the device."""
        if not which:
            return []
        rows = [self.table.rows[batch.sampled_rows[i]] for i in which]
        (places,) = upload([which], self.pool.device)
        tokens = sample(self.decoder.logits(hidden[batch.sampled_tokens[places]]), [row.sampling for row in rows])
        for row, token in zip(rows, tokens, strict=True):
            row.token_ids.append(token.token_id)
            row.sampling.append(token.token_id)
        return tokens

    def _sample(self, logits: Tensor, rows: Tensor, token_indices: Tensor, is_greedy: bool) -> Tensor:
        """Choose the next token of each row and keep it as the row's last one."""
        options = self.table.options
        if is_greedy:
            tokens = greedy_tokens(logits)
        else:
            numbers = (options.temperatures, options.top_k, options.top_p, options.min_p, options.seeds)
            tokens = sample_tokens(logits, *(option.index_select(0, rows) for option in numbers), token_indices)
        self.table.last_tokens.index_copy_(0, rows, tokens)
        return tokens

    def _attention(self, batch: KernelBatch) -> KernelAttention:
        return KernelAttention(self.pool, self.decoder.rotary_table, self._workspace, batch)


def _host_samples(state: SamplingState) -> bool:
    """Whether a row's next token needs what only the host's sampling does."""
    return state.changes_logits or state.num_logprobs is not None
