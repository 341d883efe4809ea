"""One completion as the scheduler sees it: its tokens, what it holds, and the states it may be in."""

import enum
import sys
from collections.abc import Collection
from dataclasses import dataclass, field

from zipage.engine_messages import Job, TokenRequest
from zipage.messages import RequestMetrics
from zipage.sampling_params import SamplingParams
from zipage.scheduling.stalls import StallClock

NEVER = sys.maxsize


class RequestState(enum.Enum):
    """Where a completion is in its life; `ALLOWED_TRANSITIONS` has the edges."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    RUNNING = "running"
    COMPRESSING = "compressing"
    SWAPPED = "swapped"
    FINISHED = "finished"
    ABORTED = "aborted"


_ENDS = (RequestState.FINISHED, RequestState.ABORTED)

ALLOWED_TRANSITIONS: dict[RequestState, Collection[RequestState]] = {
    RequestState.WAITING: (RequestState.PREFILLING, RequestState.ABORTED),
    # A preempted request goes back to WAITING, or to SWAPPED where its KV is kept in host memory.
    RequestState.PREFILLING: (
        RequestState.RUNNING,
        RequestState.COMPRESSING,
        RequestState.WAITING,
        RequestState.SWAPPED,
        RequestState.ABORTED,
    ),
    RequestState.RUNNING: (RequestState.COMPRESSING, RequestState.WAITING, RequestState.SWAPPED, *_ENDS),
    # COMPRESSING is stall mode; where the job fails, the request is computed again.
    RequestState.COMPRESSING: (
        RequestState.PREFILLING,
        RequestState.RUNNING,
        RequestState.WAITING,
        RequestState.ABORTED,
    ),
    RequestState.SWAPPED: (
        RequestState.PREFILLING,
        RequestState.RUNNING,
        RequestState.WAITING,
        RequestState.ABORTED,
    ),
    RequestState.FINISHED: (),
    RequestState.ABORTED: (),
}


class IllegalTransitionError(RuntimeError):
    """A request was moved along an edge that `ALLOWED_TRANSITIONS` does not have: a defect of the scheduler."""


class JobKind(enum.Enum):
    """What a job of the compression worker does for a request."""

    STALL = "stall"
    SHADOW = "shadow"
    SWAP_OUT = "swap out"
    SWAP_IN = "swap in"


@dataclass
class OpenJob:
    """A job that is not done.

    Attributes:
        kind: what it does.
        message: what the compression worker is sent.
        num_entries: resident entries that it reads.
        next_table: blocks of a stalled request after its compression, some of which it holds already; of one that goes
            on decoding the fresh blocks of its survivors.
        starts_after: steps of the request that have to return before the job may begin.
        lent_buffer: query buffer of a shadow job, whose request records in another one meanwhile; -1 for none.
        is_sent: the compression worker has it.
        num_sends: compression workers that it was sent to, one after the other.
    """

    kind: JobKind
    message: Job
    num_entries: int
    next_table: list[int]
    starts_after: int
    lent_buffer: int = -1
    is_sent: bool = False
    num_sends: int = 0


@dataclass(frozen=True)
class HostPlace:
    """Where the KV of a swapped request is in host memory."""

    blocks: list[int]
    slot: int


@dataclass(frozen=True)
class RetiringBlocks:
    """Blocks that left the table while planned steps read them; free once `after` steps of the request are back."""

    blocks: list[int]
    after: int


@dataclass(eq=False)
class Request:
    """A completion in the scheduler.

    `position` counts the tokens that planned steps have computed, which is also the position of the next one.
    `resident_length` counts the KV entries that each layer and head hold once those steps have run; the two differ
    after a compression.

    Attributes:
        rank: priority class and number in order of arrival; the lower, the earlier it is served.
        token_ids: the prompt and every sampled token.
        prefill_length: leading tokens that are compressed as a prompt is: the prompt, or all that were known when a
            compressed request had to be computed again.
        max_length: the completion ends with reason `length` when it has this many tokens, prompt included.
        max_blocks: `N_max`, the blocks that it is compressed to; 0 for never.
        block_table: KV blocks in order of their entries.
        block_hashes: chained hashes of the first full blocks of `token_ids`, as far as they were needed.
        num_registered: blocks of the table that were offered to the prefix index.
        reserved_blocks: blocks that it can count on; 0 while it runs on spare ones.
        row: row of the decode worker's state, -1 without one.
        query_buffer: where its queries are recorded, -1 for nowhere: it holds no query slot then.
        num_survivors: leading resident entries that survived the last compression.
        num_pinned: leading resident entries that are the prompt's.
        interval_start: position at which the observed interval began.
        observe_from: position from which on the interval's attention is accumulated.
        next_compression: resident length at which it is compressed next.
        steps_planned, steps_returned: steps that touch it.
        pending_tokens: tokens that steps in flight will sample.
        is_paused: it is to be preempted as soon as no step and no job touches it.
        is_pressed: it is to be compressed as soon as no step touches it, because blocks are short.
        in_place: its compression that is due is done in place: it was refused in shadow mode when it became due.
        is_broken: a job has failed, so its KV is to be computed again.
        job: the job that is not done yet.
        retiring: blocks that an earlier job has replaced.
        host_place: where its KV is, while it is swapped.
        stalls: how long it has waited for its compressions.
        lost_steps: decode workers that died while they had a step with it.
        times in seconds of the caller's monotonic clock.
    """

    uid: int
    rank: tuple[int, int]
    token_ids: list[int]
    prompt_length: int
    prefill_length: int
    max_length: int
    max_blocks: int
    params: SamplingParams
    eos_token_ids: tuple[int, ...]
    arrived: float
    state: RequestState = RequestState.WAITING
    row: int = -1
    query_buffer: int = -1
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    num_registered: int = 0
    reserved_blocks: int = 0
    position: int = 0
    resident_length: int = 0
    num_survivors: int = 0
    num_pinned: int = 0
    interval_start: int = 0
    observe_from: int = 0
    next_compression: int = NEVER
    steps_planned: int = 0
    steps_returned: int = 0
    pending_tokens: int = 0
    is_paused: bool = False
    is_pressed: bool = False
    in_place: bool = False
    is_broken: bool = False
    job: OpenJob | None = None
    retiring: RetiringBlocks | None = None
    host_place: HostPlace | None = None
    stalls: StallClock = field(default_factory=StallClock)
    compressions: int = 0
    preemptions: int = 0
    swaps: int = 0
    failed_jobs: int = 0
    lost_steps: int = 0
    peak_blocks: int = 0
    first_token: float = 0.0
    finished: float = 0.0

    @classmethod
    def from_message(
        cls, message: TokenRequest, number: int, max_length: int, max_blocks: int, now: float
    ) -> "Request":
        return cls(
            uid=message.uid,
            rank=(message.params.priority, number),
            token_ids=list(message.prompt_token_ids),
            prompt_length=len(message.prompt_token_ids),
            prefill_length=len(message.prompt_token_ids),
            max_length=max_length,
            max_blocks=max_blocks,
            params=message.params,
            eos_token_ids=message.eos_token_ids,
            arrived=now,
        )

    def to_message(self) -> TokenRequest:
        """What arrived."""
        return TokenRequest(self.uid, self.token_ids[: self.prompt_length], self.params, self.eos_token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.prompt_length

    @property
    def num_uncomputed(self) -> int:
        """Tokens that no planned step computes: the rest of a prompt, or the last one that is or will be sampled."""
        return len(self.token_ids) + self.pending_tokens - self.position

    @property
    def is_complete(self) -> bool:
        """The tokens that planned steps will sample are the last ones of `max_length`."""
        return len(self.token_ids) + self.pending_tokens >= self.max_length

    @property
    def in_flight(self) -> int:
        """Planned steps that have not returned and touch this request."""
        return self.steps_planned - self.steps_returned

    @property
    def is_quiet(self) -> bool:
        """No step and no job touches it."""
        return not self.in_flight and self.job is None

    @property
    def is_compressed(self) -> bool:
        """Entries have been evicted, so that its tokens alone do not give its KV again."""
        return self.num_survivors > 0

    @property
    def is_guaranteed(self) -> bool:
        """It never lacks a block or a query slot for good."""
        return self.reserved_blocks > 0

    @property
    def held_blocks(self) -> list[int]:
        """Every block that it holds, each once."""
        next_table = self.job.next_table if self.job is not None else []
        retiring = self.retiring.blocks if self.retiring is not None else []
        return list(dict.fromkeys([*self.block_table, *next_table, *retiring]))

    @property
    def held_buffers(self) -> list[int]:
        """Its query buffer, where it has one, and the one that its shadow job reads."""
        lent = [self.job.lent_buffer] if self.job is not None else []
        return [buffer for buffer in (self.query_buffer, *lent) if buffer >= 0]

    @property
    def is_ended(self) -> bool:
        return self.state in _ENDS

    def move_to(self, state: RequestState) -> None:
        """Raises IllegalTransitionError where the table has no such edge."""
        if state not in ALLOWED_TRANSITIONS[self.state]:
            raise IllegalTransitionError(f"request {self.uid}: {self.state.value} -> {state.value}")
        self.state = state

    def go_on(self) -> None:
        """Leave a state in which no step is planned for the one that its known tokens ask for."""
        self.move_to(RequestState.RUNNING if self.num_uncomputed <= 1 else RequestState.PREFILLING)

    def hold_blocks(self, blocks: list[int]) -> None:
        """Append blocks to the table."""
        self.block_table.extend(blocks)
        self.peak_blocks = max(self.peak_blocks, len(self.block_table))

    def advance(self, num_tokens: int) -> None:
        """Count the next tokens as computed by a planned step."""
        if self.position < self.prompt_length:
            past_prompt = max(0, self.position + num_tokens - self.prompt_length)
            self.num_pinned = self.resident_length + num_tokens - past_prompt
        self.position += num_tokens
        self.resident_length += num_tokens
        self.steps_planned += 1

    def forget_cache(self) -> None:
        """Note that its KV is gone. What eviction has dropped cannot come back: then all known tokens are a prompt."""
        if self.is_compressed:
            self.prefill_length = len(self.token_ids)
        self.position = self.resident_length = 0
        self.num_survivors = self.num_pinned = self.interval_start = 0
        self.is_paused = self.is_pressed = self.in_place = self.is_broken = False

    def lose_pool(self) -> None:
        """Note that all that it held, and the steps and the job that touched it, went with the workers' memory."""
        self.row = self.query_buffer = -1
        self.block_table, self.block_hashes = [], []
        self.num_registered = self.reserved_blocks = self.pending_tokens = 0
        self.steps_returned = self.steps_planned
        self.job, self.retiring, self.host_place = None, None, None
        self.forget_cache()
        if self.state is not RequestState.WAITING:
            self.move_to(RequestState.WAITING)

    def metrics(self) -> RequestMetrics:
        return RequestMetrics(
            arrived=self.arrived,
            first_token=self.first_token,
            finished=self.finished,
            prompt_tokens=self.prompt_length,
            output_tokens=self.num_output_tokens,
            compressions=self.compressions,
            peak_blocks=self.peak_blocks,
            preemptions=self.preemptions,
            swaps=self.swaps,
            stalled=self.stalls.total,
            shadow_stalled=self.stalls.in_shadow,
        )
