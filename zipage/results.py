"""What a client gets back for one prompt."""

from collections.abc import Iterable
from dataclasses import dataclass

from zipage.errors import InvalidRequestError
from zipage.messages import Output, PositionLogprobs, RequestMetrics


@dataclass(frozen=True, slots=True)
class Completion:
    """One of the `n` answers to a prompt.

    Attributes:
        index: 0 to n - 1.
        text: the whole text.
        token_ids: the sampled tokens.
        logprobs: one entry for each token, where they were asked for.
        finish_reason: `stop`, `length`, `abort`, `deadline` or `error`; with the last three the text is what there was.
        stop_reason: the stop string or stop token id that matched.
        metrics: the scheduler's measurements.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[PositionLogprobs] | None
    finish_reason: str | None
    stop_reason: str | int | None
    metrics: RequestMetrics | None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """The answer to one prompt: completions in the order of their index, or the reason why it was refused.

    Attributes:
        request_id: the client's name for the request.
        completions: `n` completions; empty where the request was refused.
        error: why the request was refused; nothing of it has run.
    """

    request_id: str
    completions: list[Completion]
    error: InvalidRequestError | None = None

    @property
    def text(self) -> str:
        """The text of the first completion.

        Raises:
            InvalidRequestError: the request was refused.
        """
        if self.error is not None:
            raise self.error
        return self.completions[0].text

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the prompt as the engine counted them; `None` where the request was refused."""
        return next((each.metrics.prompt_tokens for each in self.completions if each.metrics is not None), None)


def join_outputs(index: int, outputs: Iterable[Output]) -> Completion:
    """Put the pieces of completion `index` together; the last piece carries how it ended."""
    pieces = list(outputs)
    last = pieces[-1]
    with_logprobs = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    return Completion(
        index=index,
        text="".join(piece.text for piece in pieces),
        token_ids=[token for piece in pieces for token in piece.token_ids],
        logprobs=[position for positions in with_logprobs for position in positions] if with_logprobs else None,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        metrics=last.metrics,
    )


def time_to_first_token(metrics: RequestMetrics) -> float | None:
    """Seconds from arrival to the first output token; `None` where there is no output token."""
    return metrics.first_token - metrics.arrived if metrics.output_tokens > 0 else None


def time_per_output_token(metrics: RequestMetrics) -> float | None:
    """Mean seconds between output tokens after the first; `None` for fewer than two output tokens."""
    if metrics.output_tokens < 2:
        return None
    return (metrics.finished - metrics.first_token) / (metrics.output_tokens - 1)
