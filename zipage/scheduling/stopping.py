"""When a completion ends."""

from dataclasses import dataclass

from zipage.scheduling.request import Request


@dataclass(frozen=True)
class Ending:
    """`reason` is `stop` or `length`; `stop_token_id` the stop token that matched, None for end-of-sequence."""

    reason: str
    stop_token_id: int | None = None


def ending_after(request: Request) -> Ending | None:
    """Whether the last sampled token ends the completion. `min_tokens` is the sampler's: it cannot sample an end."""
    token_id = request.token_ids[-1]
    if token_id in request.params.stop_token_ids:
        return Ending("stop", token_id)
    if token_id in request.eos_token_ids and not request.params.ignore_eos:
        return Ending("stop")
    if len(request.token_ids) >= request.max_length:
        return Ending("length")
    return None
