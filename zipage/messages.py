"""The messages between clients and the engine: one tagged union for each direction.

They are msgspec structs in MessagePack; docs/protocol.md describes them for other languages. Those between the engine's
own processes are in `zipage.engine_messages`.
"""

from typing import Any

import msgspec

from zipage.sampling_params import SamplingParams


class Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True, gc=False):
    """A member of a link's union; on the wire a map with the class name under `type`."""


class Item(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A part of an internal message; on the wire an array."""


# ---- client -> tokenizer -------------------------------------------------------------------------------------------


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One prompt. Exactly one of `prompt`, `prompt_token_ids` and `messages` is given.

    `request_id` is the client's own name for the request, unique among its unfinished ones. With `stream` the text
    arrives as it is made, else in one piece at the end.
    """

    request_id: str
    prompt: str | None = None
    prompt_token_ids: list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    sampling: SamplingParams = SamplingParams()
    stream: bool = False


class Submit(Message, frozen=True):
    """Requests that enter the engine together, in this order."""

    requests: list[GenerationRequest]


class Abort(Message, frozen=True):
    """Ends requests by the client's own ids; each still unfinished completion answers with finish reason `abort`."""

    request_ids: list[str]


class StatusQuery(Message, frozen=True):
    """Asks for one `Status`."""

    query_id: int = 0


ClientMessage = Submit | Abort | StatusQuery

# ---- tokenizer -> client -------------------------------------------------------------------------------------------


class TokenLogprob(Item, frozen=True):
    """A token with its log-probability under the model's distribution before temperature and filters."""

    token_id: int
    text: str
    logprob: float


class PositionLogprobs(Item, frozen=True):
    """The sampled token of one output position and the likeliest tokens there, likeliest first."""

    sampled: TokenLogprob
    top: list[TokenLogprob]


class RequestMetrics(Item, frozen=True):
    """Measured by the scheduler for one completion; times in seconds of CLOCK_MONOTONIC.

    Of its `preemptions`, `swaps` went through host memory; the others recomputed its tokens. For `stalled` seconds it
    waited for its compressions instead of decoding; for `shadow_stalled` of them, because it had filled the block in
    which it may go on during a compression.
    `tpot` of a completion is `(finished - first_token) / (output_tokens - 1)`, `ttft` is `first_token - arrived`.
    """

    arrived: float
    first_token: float
    finished: float
    prompt_tokens: int
    output_tokens: int
    compressions: int
    peak_blocks: int
    preemptions: int
    swaps: int
    stalled: float
    shadow_stalled: float


class Output(Message, frozen=True):
    """New text and tokens of completion `index` of a request; the last one carries `finish_reason`.

    `finish_reason` is `stop` (end-of-sequence, stop token or stop string), `length`, `abort`, `deadline` or `error`;
    `stop_reason` is the stop string or stop token id that matched. `error` ends a completion that the engine has failed
    to compress or swap four times; one that was in a step of the decode worker each of four times that this died,
    because it may be the cause; and one that does not fit any more when that worker has come back with a smaller pool.
    """

    request_id: str
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    metrics: RequestMetrics | None = None


class Refused(Message, frozen=True):
    """The request was not accepted; nothing of it has run.

    `request_id` is empty where the answer is to a message of which no request id could be read.
    """

    request_id: str
    message: str
    field: str | None = None


class Status(Message, frozen=True):
    """What the engine holds now, and counters since it started.

    `integrity_errors` is the scheduler's check that every block has as many holders as references, every slot one
    owner, and every table agrees with its request; an empty list is a sound engine. `worker_restarts` counts decode and
    compression workers that have come in the place of others.
    """

    query_id: int
    model: str
    max_model_len: int
    kv_budget: int
    block_size: int
    running: int
    waiting: int
    compressing: int
    swapped: int
    blocks_total: int
    blocks_used: int
    blocks_peak: int
    slots_total: int
    slots_used: int
    host_blocks_total: int
    host_blocks_used: int
    steps: int
    compressions: int
    shadow_compressions: int
    blocks_freed: int
    stalled_seconds: float
    failed_jobs: int
    worker_restarts: int
    preemptions: int
    swaps: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    integrity_errors: list[str]


class Alive(Message, frozen=True):
    """Sent every second to each client with unfinished requests. Clients may ignore it.

    The engine learns from it which clients have gone, and aborts what they have asked for.
    """


EngineMessage = Output | Refused | Status | Alive
