"""The messages between the engine's own processes, grouped by link: one tagged union for each direction of each link.

They are msgspec structs in MessagePack. What the tokenizer sends on to or gets for clients is in `zipage.messages`.
"""

from typing import Any

import msgspec

from zipage.messages import Item, Message, RequestMetrics, Status, StatusQuery
from zipage.sampling_params import SamplingParams

# ---- tokenizer -> scheduler ----------------------------------------------------------------------------------------


class TokenRequest(Item, frozen=True):
    """One completion to compute. `uid` is unique in the engine's life.

    In `params` only `max_tokens`, `logprobs`, `kv_budget` and `deadline` may be `None`.
    `eos_token_ids` end the completion unless `params.ignore_eos`; `params.seed` is this completion's own.
    """

    uid: int
    prompt_token_ids: list[int]
    params: SamplingParams
    eos_token_ids: tuple[int, ...]


class SubmitTokens(Message, frozen=True):
    """Completions that enter the scheduler together, in this order."""

    requests: list[TokenRequest]


class AbortTokens(Message, frozen=True):
    """Ends completions; unknown or finished ones are ignored."""

    uids: list[int]


TokenizerMessage = SubmitTokens | AbortTokens | StatusQuery

# ---- scheduler -> tokenizer ----------------------------------------------------------------------------------------


class SampledToken(Item, frozen=True):
    """A sampled token; `logprob` and `top` (pairs of token id and log-probability) only where they were asked for."""

    token_id: int
    logprob: float | None = None
    top: list[tuple[int, float]] | None = None


class TokenOutput(Item, frozen=True):
    """One step's result for one completion; `token` is None where it ends without a new token."""

    uid: int
    token: SampledToken | None
    finish_reason: str | None = None
    stop_reason: int | None = None
    metrics: RequestMetrics | None = None


class TokenOutputs(Message, frozen=True):
    """The results of one step."""

    outputs: list[TokenOutput]


class RefusedTokens(Message, frozen=True):
    """A completion that is not accepted, because it can never run here or too many wait."""

    uid: int
    message: str
    field: str | None


SchedulerMessage = TokenOutputs | RefusedTokens | Status

# ---- decode worker -> scheduler ------------------------------------------------------------------------------------


class PoolGeometry(msgspec.Struct, frozen=True, kw_only=True):
    """Shape of the shared KV pool and of the host memory for swapped requests.

    `dtype` is a torch dtype's name without `torch.`. A query buffer has room for `window` queries of every layer; there
    is one for each query slot, and spare ones: while a compression reads the one, the next interval is recorded in the
    other.
    """

    num_layers: int
    num_blocks: int
    block_size: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    num_query_slots: int = 0
    num_query_buffers: int = 0
    window: int = 0
    accumulate: bool = False
    num_host_blocks: int = 0
    num_host_slots: int = 0


class PoolExport(Message, frozen=True):
    """How to open the pool: an inherited file descriptor (CPU) or CUDA IPC handles by tensor name.

    The first message of every decode worker. One that comes after another begins with an empty pool and no rows.
    """

    geometry: PoolGeometry
    device: str
    max_model_len: int
    vocab_size: int
    cuda_handles: dict[str, list[Any]] = msgspec.field(default_factory=dict)


class StepResult(Message, frozen=True):
    """Tokens sampled by one step, one for each row that reached the end of its known tokens, in the step's order."""

    step_id: int
    rows: list[int]
    tokens: list[SampledToken]


DecodeWorkerMessage = PoolExport | StepResult

# ---- scheduler -> decode worker ------------------------------------------------------------------------------------


class Admission(Item, frozen=True):
    """Puts a request into a row of the decode worker's state.

    `token_ids` are the prompt and, after a preemption, the tokens already sampled; the first `prompt_length` of them
    are the prompt. The first `position` of them have been computed; what is left of their KV are `resident_length`
    entries in the blocks of `block_table`.
    """

    row: int
    token_ids: list[int]
    prompt_length: int
    params: SamplingParams
    eos_token_ids: tuple[int, ...]
    block_table: list[int]
    position: int
    resident_length: int


class TableUpdate(Item, frozen=True):
    """Replaces a row's block table and resident length (entries), valid from the step that carries it."""

    row: int
    block_table: list[int]
    resident_length: int


class RecordingUpdate(Item, frozen=True):
    """Where a row's queries are recorded from the step that carries it on; rows that have had none record nothing.

    They go to `query_buffer`, -1 for nowhere, as those of an interval that began at position `interval_start`. Where
    attention is accumulated, prompts are observed from position `observe_from` on.
    """

    row: int
    query_buffer: int
    interval_start: int
    observe_from: int


class RowWork(Item, frozen=True):
    """Compute the next `num_tokens` known tokens of a row, after appending `new_blocks` to its block table."""

    row: int
    num_tokens: int
    new_blocks: list[int]


class Step(Message, frozen=True):
    """One forward pass, as differences to the decode worker's state, applied in the order of the fields."""

    step_id: int
    released_rows: list[int]
    admissions: list[Admission]
    table_updates: list[TableUpdate]
    recording_updates: list[RecordingUpdate]
    work: list[RowWork]


DecodeCommand = Step

# ---- scheduler -> compression worker -------------------------------------------------------------------------------


class OpenPool(Message, frozen=True):
    """Passes the decode worker's export on; answered by `PoolOpened`.

    It comes again where another decode worker has exported another pool, which takes the place of the one before.
    """

    export: PoolExport


class CompressionJob(Message, frozen=True):
    """Score one request's entries, keep the best, move them together.

    The request has `num_entries` resident entries in `block_table`. The first `num_survivors` of them survived its
    last compression (0 at the first one). The queries of the other entries are its observed interval, recorded in
    `query_buffer`; with `observe=all`, `num_observed` queries were accumulated. `num_pinned` leading entries are the
    prompt's. `keep` entries of each layer and KV head go into `target_blocks`, which may be the first blocks of
    `block_table`. Answered by `CompressionDone` or `JobFailed`.
    """

    uid: int
    block_table: list[int]
    target_blocks: list[int]
    num_entries: int
    num_survivors: int
    num_observed: int
    num_pinned: int
    query_buffer: int
    keep: int

    @property
    def is_in_place(self) -> bool:
        """Whether survivors overwrite entries of the request itself."""
        return not set(self.target_blocks).isdisjoint(self.block_table)


class SwapOut(Message, frozen=True):
    """Copy a request's blocks and its query buffer (-1 for none) to host memory; answered by `SwapDone` or `JobFailed`.

    Blocks go to `host_blocks` in order, with keys, values, scores and accumulated attention.
    """

    uid: int
    block_table: list[int]
    query_buffer: int
    host_blocks: list[int]
    host_slot: int


class SwapIn(Message, frozen=True):
    """Copy what `SwapOut` has saved back, to other blocks and another query buffer; answered in the same way."""

    uid: int
    block_table: list[int]
    query_buffer: int
    host_blocks: list[int]
    host_slot: int


Job = CompressionJob | SwapOut | SwapIn
CompressionCommand = OpenPool | Job

# ---- compression worker -> scheduler -------------------------------------------------------------------------------


class CompressionStarted(Message, frozen=True):
    """The first message of every compression worker; answered by `OpenPool`."""


class PoolOpened(Message, frozen=True):
    """The compression worker can run jobs.

    `unfinished` are uids of requests whose survivors an earlier worker had begun to move inside their own blocks, and
    whose answer may not have left it, so that their KV is undefined. Those of which the scheduler has the answer do no
    harm there. All other jobs that were not answered can be run again from their beginning.
    """

    unfinished: list[int]


class CompressionDone(Message, frozen=True):
    """The job's writes have finished on the device; the first `num_pinned` survivors are pinned."""

    uid: int
    num_pinned: int


class SwapDone(Message, frozen=True):
    """The copy of a `SwapOut` or `SwapIn` has finished."""

    uid: int


class JobFailed(Message, frozen=True):
    """A job could not be done; what it was to write is undefined."""

    uid: int
    reason: str


JobAnswer = CompressionDone | SwapDone | JobFailed
CompressionWorkerMessage = CompressionStarted | PoolOpened | JobAnswer

# ---- any child -> supervisor ---------------------------------------------------------------------------------------


class Ready(Message, frozen=True):
    """The process `process`, whose id is `pid`, can serve. The scheduler's `status` describes the engine."""

    process: str
    pid: int
    status: Status | None = None


class Failed(Message, frozen=True):
    """The process ends because of `reason`, one line for the user."""

    process: str
    pid: int
    reason: str


ChildMessage = Ready | Failed
