"""What the tokenizer process does, as spans of the trace, with the requests that begin and end in each of them."""

from zipage.engine_messages import SchedulerMessage, SubmitTokens, TokenOutputs
from zipage.text.frontend import Outbox
from zipage.tracing import Tracer, now

_LANE = "tokenizer"


class TextSpans:
    """Writes the spans of one tokenizer process, where tracing is on. A span ends now."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def submitted(self, start: int, outbox: Outbox) -> None:
        """A client's message has become tokens, if it was one with requests."""
        if self._tracer.enabled:
            requests = [
                each
                for message in outbox.to_scheduler
                if isinstance(message, SubmitTokens)
                for each in message.requests
            ]
            if requests:
                self._tracer.span(_LANE, "submit", start, now(), uids=[request.uid for request in requests])

    def delivered(self, start: int, message: SchedulerMessage) -> None:
        """The tokens of a step have become texts and left for the clients."""
        if self._tracer.enabled and isinstance(message, TokenOutputs):
            ended = [output.uid for output in message.outputs if output.finish_reason is not None]
            self._tracer.span(_LANE, "deliver", start, now(), tokens=len(message.outputs), uids=ended)
