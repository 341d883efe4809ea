"""Messages of one link as frames of bytes, with spans of the trace for every message in either direction.

A span of the lane `link out` covers encoding, one of `link in` covers decoding and begins when the frame has arrived.
Both name the link and count the messages of their direction, from 0 for every peer, so that a reader of both processes'
traces can tell how long a message was on its way.
"""

from typing import Any, Generic, TypeVar

import msgspec

from zipage.errors import EngineError, ZipageError
from zipage.tracing import TRACING_OFF, Tracer, now

Incoming = TypeVar("Incoming")
Outgoing = TypeVar("Outgoing")

# What decoding bytes from outside can raise: msgspec's own errors and invalid UTF-8 are ValueErrors, nesting without
# end is a RecursionError, and the checks of SamplingParams are ZipageErrors.
DECODE_ERRORS = (ValueError, RecursionError, ZipageError)


class Wire(Generic[Incoming, Outgoing]):
    """The encoding of one end of a link."""

    def __init__(self, incoming: Any, link: str, tracer: Tracer = TRACING_OFF) -> None:
        """Args: incoming: the union of what arrives; link: its name; tracer: of this process."""
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(incoming)
        self._link = link
        self._tracer = tracer
        self._peer = -1
        self.begin_anew()

    def begin_anew(self) -> None:
        """Count messages from 0, because another peer has come."""
        self._peer += 1
        self._num_sent = self._num_received = 0

    def encode(self, message: Outgoing) -> bytes:
        """The frame of a message that is sent now."""
        start = now()
        frame = self._encoder.encode(message)
        if self._tracer.enabled:
            self._write("link out", message, start, self._num_sent, frame)
            self._num_sent += 1
        return frame

    def decode(self, frame: bytes) -> Incoming:
        """The message in a frame.

        Raises:
            EngineError: there is none.
        """
        try:
            message: Incoming = self._decoder.decode(frame)
        except DECODE_ERRORS as error:
            raise EngineError(f"malformed message on the {self._link} link: {error}") from error
        return message

    def received(self, message: Incoming, frame: bytes, start: int) -> None:
        """Note that a message counts as received; its frame was there at `start`, in nanoseconds."""
        if self._tracer.enabled:
            self._write("link in", message, start, self._num_received, frame)
            self._num_received += 1

    def receive(self, frame: bytes) -> Incoming:
        """`decode` and `received` at once, for a frame that has just arrived."""
        start = now()
        message = self.decode(frame)
        self.received(message, frame, start)
        return message

    def _write(self, lane: str, message: object, start: int, seq: int, frame: bytes) -> None:
        facts = {"link": self._link, "seq": seq, "bytes": len(frame), "peer": self._peer}
        self._tracer.span(lane, type(message).__name__, start, now(), **facts)
