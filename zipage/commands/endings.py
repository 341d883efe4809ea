"""What to tell the user of completions that were cut short."""

DEADLINE_NOTE = "ended by its deadline"

_FAILURES = {
    "abort": "the engine ended the request before it was done",
    "error": "the engine ended the request, whose KV cache it failed several times to compress or to move, for lack of "
    "memory",
}


def failure_of(finish_reason: str | None) -> str | None:
    """Why a completion that ended so is no answer, or `None` where it is one.

    One that its deadline has ended is an answer: what there is by then is what the user has asked for.
    """
    return None if finish_reason is None else _FAILURES.get(finish_reason)
