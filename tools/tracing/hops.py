"""Messages between processes: encoding, waiting in the queue, decoding, and size, for each kind on each link."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tools.tracing.merge import EngineTrace, Window
from tools.tracing.spread import MICROSECONDS, Spread, spread
from tools.tracing.tables import integers
from zipage.tracing import Span

# Of one message: link, whether it leaves the scheduler, incarnation of the other process, number on the way there.
_Key = tuple[str, bool, int, int]


@dataclass(frozen=True)
class HopFigures:
    """Messages of one type in one direction of one link, whose `link out` ends in the window.

    Attributes:
        sender, receiver: processes.
        message: type.
        count: messages sent.
        encode_us: the sender's `link out`.
        queue_us: end of `link out` to the start of the receiver's `link in`, when the frame has arrived, of messages
            whose arrival is in the trace. The sender may note its end a moment after the receiver has the frame.
        decode_us: the receiver's `link in`.
        bytes_p50: median size of a frame; `None` where the trace has no sizes.
    """

    sender: str
    receiver: str
    message: str
    count: int
    encode_us: Spread
    queue_us: Spread
    decode_us: Spread
    bytes_p50: float | None


def hop_figures(trace: EngineTrace, window: Window) -> list[HopFigures]:
    """The figures of messages, by link, direction and type."""
    received = dict(_messages(trace, "link in"))
    sent: dict[tuple[str, bool, str], list[tuple[_Key, Span]]] = defaultdict(list)
    for key, span in _messages(trace, "link out"):
        if window.start <= span.end <= window.end:
            sent[key[0], key[1], span.name].append((key, span))
    return [_hop(*kind, messages, received) for kind, messages in sorted(sent.items())]


def _messages(trace: EngineTrace, lane: str) -> Iterator[tuple[_Key, Span]]:
    for process in trace.processes:
        at_scheduler = process.name == "scheduler"
        for span in process.spans:
            if span.lane == lane:
                incarnation = span.args.get("peer", 0) if at_scheduler else process.incarnation
                leaving = at_scheduler == (lane == "link out")
                yield (span.args["link"], leaving, incarnation, span.args["seq"]), span


def _hop(
    link: str, leaving: bool, message: str, sent: list[tuple[_Key, Span]], received: dict[_Key, Span]
) -> HopFigures:
    arrived = [(span, received[key]) for key, span in sent if key in received]
    sizes = [span.args["bytes"] for _, span in sent if "bytes" in span.args]
    return HopFigures(
        sender="scheduler" if leaving else link,
        receiver=link if leaving else "scheduler",
        message=message,
        count=len(sent),
        encode_us=spread(integers(span.end - span.start for _, span in sent), MICROSECONDS),
        queue_us=spread(integers(arrival.start - span.end for span, arrival in arrived), MICROSECONDS),
        decode_us=spread(integers(arrival.end - arrival.start for _, arrival in arrived), MICROSECONDS),
        bytes_p50=float(np.median(sizes)) if sizes else None,
    )
