"""One completion as the scheduler sees it: its tokens, what it holds, and the states it may be in."""

import enum
from collections.abc import Collection
from dataclasses import dataclass, field

from zipage.messages import RequestMetrics, TokenRequest
from zipage.sampling_params import SamplingParams


class RequestState(enum.Enum):
    """Where a completion is in its life; `ALLOWED_TRANSITIONS` has the edges."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    RUNNING = "running"
    COMPRESSING = "compressing"
    FINISHED = "finished"
    ABORTED = "aborted"


_ENDS = (RequestState.FINISHED, RequestState.ABORTED)

ALLOWED_TRANSITIONS: dict[RequestState, Collection[RequestState]] = {
    RequestState.WAITING: (RequestState.PREFILLING, RequestState.ABORTED),
    # A preempted request goes back to WAITING.
    RequestState.PREFILLING: (RequestState.RUNNING, RequestState.WAITING, RequestState.ABORTED),
    RequestState.RUNNING: (RequestState.COMPRESSING, RequestState.WAITING, *_ENDS),
    RequestState.COMPRESSING: (RequestState.RUNNING, RequestState.ABORTED),
    RequestState.FINISHED: (),
    RequestState.ABORTED: (),
}


class IllegalTransitionError(RuntimeError):
    """A request was moved along an edge that `ALLOWED_TRANSITIONS` does not have: a defect of the scheduler."""


@dataclass(eq=False)
class Request:
    """A completion in the scheduler.

    `position` counts the tokens that planned steps have computed, which is also the position of the next one.
    `resident_length` counts the KV entries that each layer and head hold once those steps have run; the two differ
    after a compression.

    Attributes:
        token_ids: the prompt and every sampled token.
        max_length: the completion ends with reason `length` when it has this many tokens, prompt included.
        max_blocks: `N_max`, from which on it is compressed when they are full; 0 for never.
        block_table: KV blocks in order of their entries.
        block_hashes: chained hashes of the first full blocks of `token_ids`, as far as they were needed.
        num_registered: blocks of the table that were offered to the prefix index.
        next_table: blocks that it will hold after the compression in flight; some of them are in `block_table` too.
        row: row of the decode worker's state, -1 without one.
        query_slot: where its queries are recorded, -1 for nowhere.
        num_survivors: leading resident entries that survived the last compression.
        num_pinned: leading resident entries that are the pinned prompt's.
        interval_start: position at which the observed interval began.
        in_flight: planned steps that have not returned yet and touch this request.
        pending_tokens: tokens that those steps will sample.
        is_paused: it is to be preempted as soon as those steps have returned.
        job_in_flight: a compression job that is not done yet touches its blocks.
        times in seconds of the caller's monotonic clock.
    """

    uid: int
    token_ids: list[int]
    prompt_length: int
    max_length: int
    max_blocks: int
    params: SamplingParams
    eos_token_ids: tuple[int, ...]
    arrived: float
    state: RequestState = RequestState.WAITING
    row: int = -1
    query_slot: int = -1
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    num_registered: int = 0
    next_table: list[int] = field(default_factory=list)
    position: int = 0
    resident_length: int = 0
    num_survivors: int = 0
    num_pinned: int = 0
    interval_start: int = 0
    in_flight: int = 0
    pending_tokens: int = 0
    is_paused: bool = False
    job_in_flight: bool = False
    compressions: int = 0
    preemptions: int = 0
    peak_blocks: int = 0
    first_token: float = 0.0
    finished: float = 0.0

    @classmethod
    def from_message(cls, message: TokenRequest, max_length: int, max_blocks: int, now: float) -> "Request":
        return cls(
            uid=message.uid,
            token_ids=list(message.prompt_token_ids),
            prompt_length=len(message.prompt_token_ids),
            max_length=max_length,
            max_blocks=max_blocks,
            params=message.params,
            eos_token_ids=message.eos_token_ids,
            arrived=now,
        )

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
    def held_blocks(self) -> list[int]:
        """Every block that it holds, each once."""
        return list(dict.fromkeys([*self.block_table, *self.next_table]))

    @property
    def is_ended(self) -> bool:
        return self.state in _ENDS

    def move_to(self, state: RequestState) -> None:
        """Raises IllegalTransitionError where the table has no such edge."""
        if state not in ALLOWED_TRANSITIONS[self.state]:
            raise IllegalTransitionError(f"request {self.uid}: {self.state.value} -> {state.value}")
        self.state = state

    def hold_blocks(self, blocks: list[int]) -> None:
        """Append blocks to the table."""
        self.block_table.extend(blocks)
        self.peak_blocks = max(self.peak_blocks, len(self.block_table))

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
        )
